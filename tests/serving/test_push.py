"""Uploading, against a stand-in of the Hub on this machine: what is asked of it, and what is refused."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fixtures.command_line import Outcome
from fixtures.exported import MIXED, student, student_folder
from huggingface_hub import constants

from budgeted_lora.models.checkpoint import GENERATION, TOKENIZER
from budgeted_lora.models.load import load_model
from budgeted_lora.serving.push import exported_names

REPO = "someone/student"
FILES = {
    "config.json": "{}", "tokenizer.json": "{}", "README.md": "---\nlibrary_name: transformers\n---\n# Student\n",
    "model.safetensors": "weights", "modeling_budgeted.py": "code",
}  # fmt: skip
OTHERS = ("notes.log", "keys.txt", "my.json", "run.py", "optimizer.safetensors", "sub/x.json", "model-1/a.safetensors")
THERE = ("model-00001-of-00002.safetensors", "chat_template.jinja", "config.json", "notes.md")  # from an earlier upload


class StandIn(ThreadingHTTPServer):
    """A Hub that takes one repository; remembers each request as (path, body, token)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes, str | None]] = []
        self.refuse = 0
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]

    def body(self, path: str) -> bytes:
        return next(body for asked, body, _ in self.asked if asked == path)


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, body, self.headers.get("Authorization")))
        if self.server.refuse:
            self.answer({"error": "Invalid credentials"}, status=self.server.refuse)
        elif self.path == "/api/repos/create":
            self.answer({"url": f"{self.server.address}/{REPO}"})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif self.path.endswith("/commit/main"):
            self.answer({"commitUrl": f"{self.server.address}/{REPO}/commit/abc", "commitOid": "abc", "success": True})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        else:
            self.answer({"error": "not here"}, status=404)

    def do_GET(self) -> None:
        if self.path.startswith(f"/api/models/{REPO}/tree/main"):
            self.answer([{"type": "file", "path": name, "size": 1, "oid": "a"} for name in THERE])
        else:
            self.answer({"error": "not here"}, status=404)

    def answer(self, value: dict | list, *, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    server = StandIn()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported folder into which its owner has put more."""
    for name, text in (FILES | dict.fromkeys(OTHERS, "stays here")).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(("words", "visibility"), [([], "private"), (["--public"], "public")])
def test_a_repository_is_made_and_the_folder_sent(
    hub: StandIn, folder: Path, run: Callable[..., Outcome], words: list[str], visibility: str
) -> None:
    done = run("push", folder, REPO, *words)
    assert (done.status, done.out) == (0, f"{hub.address}/{REPO}/commit/abc\n")
    made = json.loads(hub.body("/api/repos/create"))
    assert (made["organization"], made["name"], made["type"]) == ("someone", "student", "model")
    assert made["visibility"] == visibility
    lines = [json.loads(line) for line in hub.body(f"/api/models/{REPO}/commit/main").splitlines()]
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    assert sent == {name: text.encode() for name, text in FILES.items()}
    deleted = {line["value"]["path"] for line in lines if line["key"] == "deletedFile"}
    assert deleted == {"model-00001-of-00002.safetensors", "chat_template.jinja"}, "else they would be read"
    assert {token for _, _, token in hub.asked} == {"Bearer hf_made_up"}


def test_all_that_export_writes_is_sent(run: Callable[..., Outcome], tmp_path: Path) -> None:
    source, out = student_folder(tmp_path / "source", student(MIXED)), tmp_path / "out"
    for name in (*TOKENIZER, GENERATION):
        if not (source / name).exists():
            (source / name).write_text("{}")
    assert run("export", source, "--to", out).status == 0
    names = sorted(path.name for path in out.iterdir())
    assert {"README.md", "modeling_budgeted.py", *TOKENIZER, GENERATION} <= set(names)
    assert exported_names(out) == names
    model = load_model(source)
    (tmp_path / "shards").mkdir()
    model.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    shards = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert len(shards) > 3
    assert exported_names(tmp_path / "shards") == shards


def test_without_a_right_to_write_nothing_is_sent(hub: StandIn, folder: Path, run: Callable[..., Outcome]) -> None:
    hub.refuse = 401
    line = run("push", folder, REPO).refusal()
    assert line.startswith(f"{REPO}: cannot be uploaded")
    assert line.endswith("log in with `hf auth login`, or check who may write there")
    assert hub.paths() == ["/api/repos/create"]


@pytest.mark.parametrize("absent", ["config.json", "README.md", "model.safetensors"])
def test_other_folders_are_refused(hub: StandIn, folder: Path, run: Callable[..., Outcome], absent: str) -> None:
    (folder / absent).unlink()
    assert "no such folder; expected an exported folder" in run("push", folder / "nothing", REPO).refusal()
    assert "expected an exported folder" in run("push", folder, REPO).refusal()
    assert hub.asked == []


def test_malformed_names_and_no_network_are_refused(
    hub: StandIn, folder: Path, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "expected OWNER/NAME" in run("push", folder, "student").refusal()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids the network" in run("push", folder, REPO).refusal()
    assert hub.asked == []

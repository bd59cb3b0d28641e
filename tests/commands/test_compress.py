"""`budgeted-lora compress`: what it refuses, what it writes, and one run from a model and a text to a student."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fixtures.checkout import checkout
from fixtures.command_line import Outcome
from fixtures.own_model import write_own_model, write_text_file
from transformers import AutoModelForCausalLM

from budgeted_lora.commands import clock
from budgeted_lora.commands.clock import Clock
from budgeted_lora.commands.own_report import weights
from budgeted_lora.config.scale import load_config
from budgeted_lora.planning import measure, own_model
from budgeted_lora.planning.costs import Measured, ScaleCosts, calibration_key
from budgeted_lora.workflow.graph import load_graph

Run = Callable[..., Outcome]
FILE = Path("config/model.yaml")
WORDS = ["compress", "model", "--text", "text/*.jsonl", "--cores", 1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHORT = ["--tokens", 50 * 256]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a model and a text."""
    folder = checkout(tmp_path_factory.mktemp("checkout"))
    write_own_model(folder / "model")
    (folder / "text").mkdir()
    write_text_file(folder / "text" / "one.jsonl")
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout as working folder; a scale that a test writes is gone after it."""
    monkeypatch.chdir(made)
    yield made
    (made / FILE).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("words", "line"),
    {
        "nothing asked": (WORDS, "how small?: expected one of --speedup, --budget, --param-reduction, --budgets"),
        "two asked": ([*WORDS, "--budget", 0.4, "--speedup", 2], "--speedup and --budget: expected one of"),
        "no text": (["compress", "model", "--budget", 0.4], "--text is missing: expected files of text"),
        "a glob that the shell read": ([*WORDS, "b.jsonl", "--budget", 0.4], "'b.jsonl': one word too many; expected"),
        "text that is not there": (
            ["compress", "model", "--text", "no/*.txt", "--budget", 0.4], "corpus.files: 'no/*.txt' matches no file",
        ),
        "no such field": ([*WORDS, "--budget", 0.4, "--text-field", "body"], "no field 'body' (corpus.text_field)"),
        "too fast": ([*WORDS, "--speedup", 50], "--speedup 50: no F reaches it with rank 5"),
        "too small": ([*WORDS, "--param-reduction", 100], "--param-reduction 100: no F reaches it with"),
        "slower": ([*WORDS, "--speedup", 0.5], "--speedup 0.5: expected at least 1"),
        "no fraction": ([*WORDS, "--budget", 1.4], "--budget 1.4: expected 0 to 1"),
        "no list": ([*WORDS, "--budgets", "0,x"], "--budgets 0,x: expected different numbers from 0 to 1"),
        "a list with a repetition": ([*WORDS, "--budgets", "0,0"], "--budgets 0,0: expected different numbers"),
        "layers": ([*WORDS, "--budget", 0.4, "--student-layers", 9], "--student-layers 9: expected 1 to 4, the layers"),
        "both depths": ([*WORDS, "--budget", 0.4, "--student-layers", 2, "--half"], "--half and --student-layers"),
        "both lengths": ([*WORDS, "--budget", 0.4, "--hours", 2, *SHORT], "--hours and --tokens: expected one of them"),
        "no time": ([*WORDS, "--budget", 0.4, "--hours", 0], "--hours 0: expected 0.001 to 10000"),
        "few tokens": ([*WORDS, "--budget", 0.4, "--tokens", 100], "--tokens 100: expected at least"),
        "rank": ([*WORDS, "--budget", 0.4, "--rank", 99], "--rank 99: expected at most 16, the narrowest projection"),
        "multiple": ([*WORDS, "--budget", 0.4, "--rank-multiple", 0], "--rank-multiple 0: expected at least 1"),
        "rule": ([*WORDS, "--budget", 0.4, "--rule", "best"], "--rule best: expected recommended or paper"),
        "name": ([*WORDS, "--budget", 0.4, "--name", "a/b"], "--name 'a/b': expected letters, digits"),
        "another scale": ([*WORDS, "--budget", 0.4, "--name", "mini"], "config/mini.yaml: is there already, and not"),
        "controls": (
            [*WORDS, "--budget", 0, "--rank", 1, "--student-layers", 1, "--controls"],
            "--controls: F = 0 leaves the MACs of 1 layers without feed-forwards; expected a larger F or --rank",
        ),
        "cores": ([*WORDS, "--budget", 0.4, "--cores", 999], "--cores 999: expected 1 to"),
        "no model": (["compress", "./none", *WORDS[2:], "--budget", 0.4], "MODEL './none': no such folder, and not"),
        "no checkpoint": (["compress", "text", *WORDS[2:], "--budget", 0.4], "MODEL text: no config.json; expected"),
    }.values(),
)  # fmt: skip
def test_bad_requests_are_refused_in_one_line(here: Path, run: Run, words: list[object], line: str) -> None:
    assert line in run(words).refusal()
    assert not FILE.exists()
    assert not Path("results").exists()


def test_it_needs_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.chdir(tmp_path)
    line = run(WORDS, "--budget", 0.4).refusal()
    assert line.startswith(f"{tmp_path}: no Snakefile here; expected the root of a checkout of budgeted-lora")


def test_a_request_is_written_shown_and_taken_up_again(here: Path, run: Run) -> None:
    outcome = run(WORDS, "--speedup", 1.5, SHORT)
    assert outcome.status == 0, outcome
    assert "model: llama, 4 layers of 32, 0.1 M weights" in outcome.out
    assert "Each trains on 12,800 tokens, 50 steps of 1 x 256;" in outcome.out
    assert outcome.out.endswith("nothing was started; --yes starts without asking\n")
    config = load_config(FILE)
    assert config.tables["table2"][0].budget == [0.47]
    assert config.corpus.validation_tokens == 8192
    assert config.student.layers == 4

    edited = FILE.read_text().replace("1.0e-4", "2.0e-4")
    FILE.write_text(edited)
    assert "going on with it as it is now" in run(WORDS, "--speedup", 1.5, SHORT).out
    assert FILE.read_text() == edited
    line = run(WORDS, "--speedup", 1.6, SHORT).refusal()
    assert line.startswith('config/model.yaml: was written for another request, {"model": "model", "text": ["text/*')


def test_smaller_dense_students_are_trained_where_asked(here: Path, run: Run) -> None:
    run(WORDS, "--budgets", "0.4,0.6", SHORT)
    assert "controls" not in load_config(FILE).tables
    FILE.unlink()
    outcome = run(WORDS, "--budgets", "0.4,0.6", "--controls", SHORT)
    assert outcome.status == 0, outcome
    assert load_config(FILE).tables["controls"][0].macs_of_budget == [0.6, 0.4]
    assert "Beside them, dense students of the same MACs: " in outcome.out


def test_tokens_are_chosen_by_a_measurement(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """While steps are timed, as many processes compute as will in the run; none is left behind."""
    beside, timed, cores = [], clock.costs_of, min(2, len(os.sched_getaffinity(0)))

    def counted(*arguments: object, **options: object) -> ScaleCosts:
        beside.append(len(multiprocessing.active_children()))
        return timed(*arguments, **options)

    monkeypatch.setattr(clock, "costs_of", counted)
    outcome = run(WORDS[:-1], cores, "--budgets", "0,0.4", "--half", "--hours", 0.05, "--rule", "paper")
    assert outcome.status == 0, outcome
    assert beside == [cores - 1]
    assert multiprocessing.active_children() == []
    assert "by steps measured here" in outcome.out
    config = load_config(FILE)
    assert config.tables["table2"][0].budget == [0.4, 0.0]
    assert (config.student.layers, config.training.init, config.budget.order) == (2, "importance", "mac")
    assert config.training.tokens >= 40 * 256
    FILE.unlink()
    outcome = run(WORDS, "--budget", 0.4, "--hours", 0.001)
    assert outcome.status == 2
    assert "--hours 0.001: the fewest steps" in outcome.err
    assert not FILE.exists()


def test_each_kind_of_student_is_timed(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dense student is smaller than the one beside it, and has no low-rank paths."""
    run(WORDS, "--budgets", "0,0.4", "--controls", SHORT)
    draft = load_graph(FILE)
    dense, budgeted = Measured(whole=1.0, without=1.0, peak_bytes=1), Measured(whole=9.0, without=7.0, peak_bytes=1)
    found = {
        calibration_key(recipe): dense if recipe.student_ffn else budgeted
        for recipe in map(draft.recipe_of, draft.cells)
    }
    assert len(found) == 3  # two dense students, and all budgets together
    device = Clock.assumed(draft).device
    monkeypatch.setattr(clock, "costs_of", lambda *a, **k: SimpleNamespace(measured=found, device=device))
    monkeypatch.setattr(measure, "forward_measured", lambda costs, *, threads: costs.device)
    monkeypatch.setattr(clock, "drafted", lambda scale: draft)
    measured = Clock.measured(SimpleNamespace(on_gpu=True), cores=1)
    assert sorted(step.whole for step in measured.steps.values()) == [1.0, 1.0, 9.0]


def test_a_model_of_the_hub_is_pinned_to_a_commit(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    commit, asked = "a" * 40, []

    class Api:
        def model_info(self, name: str, *, revision: str | None) -> SimpleNamespace:
            asked.append((name, revision))
            return SimpleNamespace(sha=commit)

    def download(name: str, file: str, *, revision: str) -> str:
        asked.append((name, file, revision))
        return str(here / "model" / file)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model = own_model.open_model("owner/Name-1B")
    assert model.place == {"hub": "owner/Name-1B", "revision": commit}
    assert asked == [("owner/Name-1B", None), ("owner/Name-1B", "config.json", commit)]
    assert own_model.open_model(f"owner/Name-1B@{'b' * 40}").place["revision"] == "b" * 40
    assert own_model.name_of("owner/Name-1B") == "name-1b"

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: (_ for _ in ()).throw(OSError("no network")))
    line = run("compress", "owner/name", WORDS[2:], "--budget", 0.4).refusal()
    assert line.startswith("MODEL owner/name: no such folder here, and the Hub's config.json cannot be read (no net")


@pytest.fixture
def hub(made: Path) -> Iterator[str]:
    """The address at which the model is served as the Hub does."""
    server = Path(__file__).parents[1] / "fixtures" / "hub_server.py"
    served = [sys.executable, str(server), str(made / "model"), "some/model", COMMIT]
    with subprocess.Popen(served, stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.terminate()


def test_a_model_is_downloaded_from_a_hub_when_the_run_starts(here: Path, hub: str, tmp_path: Path) -> None:
    own = os.environ | {"HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}
    own |= {"PYTHONPATH": str(here / "src")}
    own.pop("HF_HUB_OFFLINE", None)

    def go(*words: object) -> str:
        command = [sys.executable, "-m", *map(str, words)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
        assert ran.returncode == 0, ran.stderr[-3000:]
        return ran.stdout

    said = go("budgeted_lora.commands.app", "compress", "some/model", *WORDS[2:], "--budget", 0.4, *SHORT)
    assert "some/model: llama, 4 layers of 32" in said
    assert not list(tmp_path.rglob("*.safetensors"))
    [teacher] = load_config(FILE).teacher_ladder.values()
    assert (teacher.hub, teacher.revision) == ("some/model", COMMIT)
    model = Path("results/model/teachers/model/model")
    go("snakemake", f"{model}.sha256", "--cores", 1, "--config", "scale=model")
    assert (model / "model.safetensors").is_file()
    shutil.rmtree("results")


def test_a_model_and_a_text_become_a_student(here: Path, run: Run) -> None:
    outcome = run(WORDS, "--budget", 0.4, "--controls", SHORT, "--yes")
    assert outcome.status == 0, outcome.err[-3000:]
    report = Path("reports/model/students.md").read_text()
    assert "| F = 0.4 |" in report
    assert "| dense, " in report
    assert Path("reports/model/figures/pareto_mac_speedup.svg").is_file()
    assert Path("reports/model/index.html").is_file()
    [dense, folder] = sorted(Path("exported/model").iterdir(), key=lambda path: path.name.startswith("F0.4"))
    assert dense.name.startswith("kd_full-")
    sizes = [weights(one) for one in (dense, folder)]
    assert all(f"| {size} |" in report for size in (*sizes, weights(Path("model"))))
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert model.config.num_hidden_layers == 4
    [cell] = Path("results/model/cells").glob("budgeted-lora*")
    scored = json.loads((cell / "compressed/default/perplexity.json").read_text())
    assert f"{scored['value']:,.2f}" in report
    again = run(WORDS, "--budget", 0.4, "--controls", SHORT, "--yes")
    assert again.status == 0, again.err[-3000:]

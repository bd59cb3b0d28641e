"""Table 1 as calibration: what the teachers' perplexities say before any student trains."""

import json
from pathlib import Path

import pytest

from budgeted_lora.config.scale import Config, load_config
from budgeted_lora.config.sections import Calibration
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json
from budgeted_lora.stages.calibrate_teachers import calibrate_teachers, judge, published_perplexities
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.report import cell_rows

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "config" / "published.csv"
EXACT = {"0.13B": 21.8, "0.5B": 16.0, "1B": 14.1}  # method, section 2


def calibrate(tmp_path: Path, perplexities: dict[str, float], **options: object) -> dict:
    scores = []
    for name, value in perplexities.items():
        path = tmp_path / "teachers" / name / "perplexity.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"value": value, "standard_error": 0.05, "tokens": 1000}))
        scores.append(path)
    about = {"calibration": Calibration(**options), "published": PUBLISHED, "scale": "tiny"}
    out, page = tmp_path / "calibration.json", tmp_path / "calibration.md"
    calibrate_teachers(scores=scores, out=out, report=page, **about)
    return read_json(out)


def test_published_values_come_from_the_table() -> None:
    assert published_perplexities(PUBLISHED) == EXACT


def test_values_as_published_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = calibrate(tmp_path, {name: 1.015 * value for name, value in EXACT.items()}, on_miss="stop")
    assert made["as_published"] is True
    assert [entry["teacher"] for entry in made["teachers"]] == list(EXACT)
    assert all(entry["difference"] == pytest.approx(0.015) for entry in made["teachers"])
    said = capsys.readouterr().err
    assert said.startswith("calibration: the teachers' perplexities come out as published within 2.0%: 0.13B 22.13")
    assert "| 1B | 14.1 | 14.31 ± 0.05 | +1.5% | yes |" in (tmp_path / "calibration.md").read_text()
    assert set(made["provenance"]["inputs"]) >= {str(PUBLISHED)}


@pytest.mark.parametrize("factor", [1.03, 0.97])
def test_a_value_off_on_either_side_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float
) -> None:
    made = calibrate(tmp_path, EXACT | {"0.5B": 16.0 * factor})
    assert made["as_published"] is False
    assert [entry["as_published"] for entry in made["teachers"]] == [True, False, True]
    said = capsys.readouterr().err
    assert said.startswith("WARNING: calibration: perplexity of 0.5B differs from the published one by more than 2.0%")
    assert said.count("\n") == 1
    assert "**no**" in (tmp_path / "calibration.md").read_text()


def test_a_value_off_stops_a_run_that_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"perplexity of 0\.13B differs .* calibration\.on_miss is stop") as caught:
        calibrate(tmp_path, EXACT | {"0.13B": 40.0}, on_miss="stop")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "calibration.json").exists()
    assert not (tmp_path / "calibration.md").exists()


def test_the_tolerance_decides() -> None:
    measured = {"1B": {"value": 14.1 * 1.05, "standard_error": 0.1}}
    assert not judge(measured, EXACT, tolerance=0.04)[0]["as_published"]
    assert judge(measured, EXACT, tolerance=0.06)[0]["as_published"]


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"teacher 7B has no published perplexity; expected 0\.13B, 0\.5B, 1B"):
        calibrate(tmp_path, {"7B": 5.0})
    with pytest.raises(BadInput, match="perplexity of teacher 1B has no value"):
        judge({"1B": {}}, EXACT, tolerance=0.1)
    with pytest.raises(BadInput, match=r"gone\.csv: no such file"):
        published_perplexities(tmp_path / "gone.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BadInput, match=r"other\.csv: not the table of published numbers"):
        published_perplexities(tmp_path / "other.csv")


def test_only_scales_with_the_papers_teachers_are_judged() -> None:
    judged = {}
    for path in sorted((ROOT / "config").glob("*.yaml")):
        if path.stem != "claims":
            judged[path.stem] = Graph(load_config(path)).calibration()
    assert judged.pop("paper") == ["results/paper/calibration.json"]
    assert judged.pop("single-gpu") == ["results/single-gpu/calibration.json"]
    assert set(map(tuple, judged.values())) == {()}
    values = load_config(ROOT / "config" / "mini.yaml").model_dump()
    with pytest.raises(ValueError, match="needs the paper's checkpoints, but teachers is shipped"):
        Config.model_validate(values | {"calibration": {"teachers": True}})


def test_neither_key_changes_a_cell_or_a_list() -> None:
    plain = Graph(load_config(ROOT / "config" / "paper.yaml"))
    other = Graph(load_config(ROOT / "config" / "paper.yaml", {"fit": "warn", "calibration": {"on_miss": "stop"}}))
    assert list(plain.cells) == list(other.cells)
    assert cell_rows(plain) == cell_rows(other)

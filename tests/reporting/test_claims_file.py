"""config/claims.yaml: complete, the right way round, and refused in one line when it is not sound."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from budgeted_lora.config.scale import CLAIM_TABLES, load_config
from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.claims.file import (
    ClaimsFile,
    Near,
    Open,
    Order,
    Printed,
    Swapped,
    lines_of,
    read_claims,
    selections,
)
from budgeted_lora.reporting.claims.verdicts import printed_value
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import LINE_COLUMNS
from budgeted_lora.reporting.standing import Standing

ROOT = Path(__file__).resolve().parents[2]
CLAIMS, PUBLISHED = ROOT / "config" / "claims.yaml", ROOT / "config" / "published.csv"
PRINTED = Published.open(PUBLISHED).lines
MINI = load_config(ROOT / "config" / "mini.yaml")


# --- the file in config/


def test_every_published_number_has_one_claim() -> None:
    found = read_claims(CLAIMS, PRINTED)
    numbers = [claim for claim in found.claims if isinstance(claim, Printed | Open | Swapped)]
    covered = [line for claim in numbers for lines in lines_of(claim) for line in lines.of(PRINTED)]
    assert len(covered) == len(set(covered)), "a number is judged twice"
    assert set(covered) == set(PRINTED)
    assert len(PRINTED) == len(pd.read_csv(PUBLISHED))


def test_the_papers_own_numbers_bear_out_every_trend() -> None:
    """So that no direction is written down the wrong way round."""
    checked = 0
    for claim in read_claims(CLAIMS, PRINTED).claims:
        if not isinstance(claim, Order | Near):
            continue
        for left, right in claim.pairs():
            both = [printed_value(one, claim.metric, PRINTED) for one in (left, right)]
            if None in both:
                continue
            change = both[1].value / both[0].value - 1
            if isinstance(claim, Near):
                assert abs(change) <= claim.margin_pct / 100, claim.id
            else:
                assert change * {"rising": 1, "falling": -1}[claim.direction] > 0, (claim.id, left, right)
            checked += 1
    assert checked >= 50


def test_the_stated_trends_are_all_there() -> None:
    ids = {claim.id for claim in read_claims(CLAIMS, PRINTED).claims}
    assert ids >= {
        "full-is-best", "full-improves-with-teacher", "full-beats-initialisation", "lora-worsens-with-teacher",
        "icl-lora-falls", "budget04-matches-lora", "budget04-beats-budget0", "ppl-falls-with-budget",
        "short-decay-is-best", "mixed-is-best-full", "mixed-is-best-lora", "warm-beats-scratch", "ppl-falls-with-rank",
        "icl-full-rises", "icl-budgeted-rises", "icl-budget04-beats-lora", "training-cost-order", "table8-kept",
        "slip-mixed", "slip-rank", "slip-capitalize", "table8-swapped",
    }  # fmt: skip


def test_claims_speak_of_the_tables_whose_results_the_rule_asks_for() -> None:
    named = {one.table for claim in read_claims(CLAIMS, PRINTED).claims for one in selections(claim) if one.table}
    assert named == CLAIM_TABLES
    assert named <= MINI.tables.keys()


def test_a_setting_is_read_as_fields() -> None:
    [line] = [line for line in PRINTED if line.setting == "init=first T=4.0 a=0.9"]
    wanted = {"method": "kd_full", "teacher": "0.13B", "init": "first", "temperature": 4.0, "kd_weight": 0.9}
    assert line.fields == wanted
    ranks = [line.fields["rank"] for line in PRINTED if line.source == "Table 6"]
    assert ranks == [16, 32, 64, 128]


def test_rounding_is_half_of_the_last_printed_digit() -> None:
    found = {line.text: line.rounding for line in PRINTED}
    assert [found[text] for text in ("26.50", "0.91", "1.0", "42")] == pytest.approx([0.005, 0.005, 0.05, 0.5])


# --- bad files

GOOD = {"id": "a", "claim": "A.", "source": "Table 2", "kind": "slip", "judged": "everywhere"}
ORDER = GOOD | {"kind": "order", "metric": "ppl", "direction": "rising", "steps": [{"table": "table2"}] * 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; expected the paper's claims"),
        ("claims: [", "not YAML"),
        ("claims: []", "claims is \\[\\]"),
        ({"claims": [GOOD, GOOD]}, "claim a stands twice"),
        ({"claims": [GOOD | {"colour": "red"}]}, "unknown key claims.0.slip.colour"),
        ({"claims": [GOOD | {"kind": "guess"}]}, "claims.0 is .*'guess'"),
        ({"claims": [ORDER | {"direction": "up"}]}, "direction is 'up'"),
        ({"claims": [ORDER | {"of": {"table": "table99"}, "steps": [{}, {}]}]}, "'table99' is"),
        ({"claims": [ORDER | {"steps": [{}, {"table": "table2"}]}]}, "either table or model"),
        ({"claims": [ORDER | {"steps": [{"model": "x/y"}] * 2}]}, "model 'x/y' is not"),
        ({"claims": [GOOD | {"lines": [{"source": "Table 77", "metric": "ppl"}]}]}, "no line .* source Table 77"),
        ({"claims": [GOOD | {"lines": [{"source": "Table 2", "metric": "ppl"}]}]}, "several published numbers"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, text: str | dict | None, message: str) -> None:
    path = tmp_path / "claims.yaml"
    if text is not None:
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    with pytest.raises(BadInput, match=message) as refused:
        read_claims(path, PRINTED)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_bad_file_ends_the_command_with_status_2(tmp_path: Path) -> None:
    (tmp_path / "claims.yaml").write_text("claims: 3\n")
    about = {"config": MINI.model_dump(mode="json"), "standing": Standing().model_dump()}
    (tmp_path / "tables.csv").write_text(",".join(LINE_COLUMNS))
    options = {"options": json.dumps(about), "results": tmp_path, "published": PUBLISHED}
    options |= {"claims": tmp_path / "claims.yaml", "out": tmp_path / "claims.csv"}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [
        sys.executable,
        "-c",
        "from budgeted_lora.commands.app import main; main()",
        "stage",
        "judge_claims",
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "claims.csv").exists()


def test_the_schema_accepts_what_yaml_writes() -> None:
    values = yaml.safe_load(CLAIMS.read_text())
    assert ClaimsFile.model_validate(values).claims == read_claims(CLAIMS, PRINTED).claims

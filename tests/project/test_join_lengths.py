"""Tool for maintainers: the curves of one run go on with the students of a longer one."""

from math import log

import pandas as pd
import pytest

from budgeted_lora.reporting.tables.tokens import PowerLaw
from tools.join_lengths import joined_curves, long_points, short_points

LAW = PowerLaw(a=100.0, b=0.5, floor=log(16.0))
LENGTHS = (300_000, 1_200_000, 4_800_000)


def cell(name: str, tokens: int, ppl: float, **more: object) -> dict:
    """A line of cells.csv."""
    about = {
        "tables": "tokens",
        "method": "kd_lora",
        "budget": None,
        "student_layers": 6,
        "student_ffn": None,
        "teacher": "0.13B",
    }
    return about | {"cell": name, "variant": "default", "tokens": tokens, "ppl": ppl, "ppl_se": 0.1, "seed": 0} | more


def test_a_curve_goes_on_with_the_mean_of_the_seeds_of_a_longer_run() -> None:
    table = {"student": ["KD LoRA", "another"]}
    for count in LENGTHS:
        table |= {f"ppl_{count}": [LAW.perplexity(count), 20.0], f"ppl_{count}_se": [0.2, 0.2]}
    shorter = short_points(pd.DataFrame(table | {"exponent": [0.1, 0.2]}))
    assert sorted(shorter["tokens"].unique()) == list(LENGTHS)
    cells = [cell("a", 10_000_000, LAW.perplexity(10_000_000) - 1), cell("b", 10_000_000, LAW.perplexity(1e7) + 1)]
    small = {"method": "kd_full", "student_layers": 4, "student_ffn": 320}
    cells += [cell(f"c{count}", count, 21.0 - i, **small) for i, count in enumerate(LENGTHS)]
    cells += [
        cell("f", 10_000_000, 1.0, tables="table6"),
        cell("d", 10_000_000, 9.0, method="kd_full"),
        cell("e", 10_000_000, 9.0, teacher="1B"),
    ]
    lora, dense = joined_curves(shorter, long_points(pd.DataFrame(cells), teacher="0.13B"), teacher_ppl=16.0)
    assert (dense.label, list(dense.points["ppl"])) == ("smaller KD Full, 4 layers, FFN 320", [21.0, 20.0, 19.0])
    assert lora.label == "KD LoRA"
    assert list(lora.points["tokens"]) == [*LENGTHS, 10_000_000]
    assert lora.law is not None
    assert (lora.law.a, lora.law.b) == pytest.approx((LAW.a, LAW.b), rel=1e-6)

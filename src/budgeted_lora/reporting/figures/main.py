"""Figure 2: in-context learning by teacher and method."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from budgeted_lora.reporting.figures.style import GREY, MARKERS, METHOD_DASHES, colour
from budgeted_lora.reporting.grouping import groups, icl_scores, method_label, one_recipe, sorted_teachers
from budgeted_lora.reporting.results import Results


def figure2(results: Results) -> Figure:
    """In-context composite by teacher and method; band over runs, smallest teacher's line, chance."""
    scored = icl_scores(results)
    one_recipe(scored, "figure2")
    names = sorted_teachers(results, scored)
    figure, axes = plt.subplots(figsize=(6.6, 4.6))
    for position, ((method, budget), group) in enumerate(groups(scored)):
        runs = [seed_composites(group[group["teacher"] == name]) for name in names]
        places = [i for i, values in enumerate(runs) if len(values)]
        if not places:
            continue
        mean, low, high = (np.array([100 * f(runs[i]) for i in places]) for f in (np.mean, np.min, np.max))
        ink, marker = colour(method, budget), MARKERS[position % len(MARKERS)]
        axes.fill_between(places, low, high, color=ink, alpha=0.18, linewidth=0)
        dashes = METHOD_DASHES[method]
        axes.plot(places, mean, color=ink, marker=marker, linestyle=dashes, label=method_label(method, budget))
    teachers = results.teachers()
    own = teachers[teachers["icl"].notna()] if "icl" in teachers else teachers
    if len(own):
        axes.axhline(100 * own["icl"].iloc[0], color=GREY, linestyle=(0, (6, 2)), label=f"{own['name'].iloc[0]} itself")
        axes.axhline(100 * own["icl_chance"].iloc[0], color=GREY, linestyle=(0, (1, 1.6)), label="chance")
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.25, max(len(names) - 0.75, 0.25))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Teacher")
    axes.set_ylabel("ICL composite, exact match (%)")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    return figure


def seed_composites(group: pd.DataFrame) -> np.ndarray:
    """Composite of every demonstration seed of every cell of a group, in [0, 1]."""
    values = [np.array(list(icl["per_seed"].values()), dtype=np.float64) for icl in group["icl"] if icl]
    return np.concatenate(values) if values else np.zeros(0)

"""How far a scale is, as text; and the terminal that shows it again and again."""

import math
import shutil
import sys
import time

from budgeted_lora.commands.text import duration, table
from budgeted_lora.commands.watch import Training, View, Watcher

CLEAR, HOME, REST_OF_LINE, REST_OF_SCREEN = "\x1b[2J", "\x1b[H", "\x1b[K", "\x1b[J"  # of a terminal


def render_view(view: View) -> str:
    """A line for the whole, one per kind of job, one per job at work."""
    if view.done == view.count:
        head = f"{view.scale}: all {view.count} jobs are done; tables and figures are not counted"
    else:
        left = f"about {duration(view.seconds_left)} left, {view.at_once} at once"
        others = f"; one is at `--scale {view.elsewhere[0]}`" if view.elsewhere else ""
        run = "" if view.at_work else f"; no run is at work here{others}"
        head = f"{view.scale}: {view.done} of {view.count} jobs done, {left}{run}"
    rows = [["", "done", "of", "took", "left"]]
    for kind in view.kinds:
        took = "" if kind.mean_seconds is None else duration(kind.mean_seconds)
        left = duration(kind.seconds_left) if kind.done < kind.count else ""
        rows.append([kind.kind, str(kind.done), str(kind.count), took, left])
    lines = [head, "", *table(rows, numbers=range(1, 5))]
    if view.trainings:
        heading = ["training", "step", "of", "tokens/s", "loss", "F target", "F now", "left"]
        lines += ["", *table([heading, *map(training_row, view.trainings)], numbers=range(1, 8))]
    if view.others:
        lines += ["", "also at work"]
    for other in view.others:
        bar = f"  {other.done} of {other.of}, {duration(other.seconds_left)} left" if other.of else ""
        lines.append(f"{other.what}{bar}")
    return "\n".join(lines)


def training_row(one: Training) -> list[str]:
    values = [f"{one.tokens_per_second:,.0f}"] if one.tokens_per_second else [""]
    for number, digits in ((one.loss, 4), (one.target_fraction, 3), (one.retained_fraction, 3)):
        values.append("" if number is None or math.isnan(number) else f"{number:.{digits}f}")
    left = "" if one.seconds_left is None else duration(one.seconds_left)
    return [one.cell, f"{one.step:,}", f"{one.steps:,}", *values, left]


def follow(watcher: Watcher, *, every: float) -> None:
    """Shows the view again every few seconds, until all jobs are done or the person interrupts."""
    sys.stdout.write(CLEAR)
    try:
        while True:
            view = watcher.look()
            width, height = shutil.get_terminal_size()
            lines = [line[: width - 1] for line in render_view(view).splitlines()][: height - 1]
            sys.stdout.write(HOME + "".join(f"{line}{REST_OF_LINE}\n" for line in lines) + REST_OF_SCREEN)
            sys.stdout.flush()
            if view.done == view.count:
                return
            time.sleep(every)
    except KeyboardInterrupt:
        return

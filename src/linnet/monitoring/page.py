"""A look for drift as one self-contained HTML page, in light and dark."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import jinja2
import numpy as np

from linnet.monitoring.comparison import Shift
from linnet.monitoring.features import ABOUT, FEATURES, Floats, Sample

if TYPE_CHECKING:
    from linnet.monitoring.drift import DriftReport

BINS = 24
SHOWN_CLASSES = 60


@dataclass(frozen=True)
class Plot:
    """Two histograms of one number: bars of heights 0 to 1 over `low` to `high`."""

    shift: Shift
    about: str
    low: float
    high: float
    before: list[float]
    now: list[float]


def render(report: "DriftReport", before: Sample, now: Sample) -> str:
    """Return the page of a look, with the samples that it compared."""
    numbers = {shift.name: shift for shift in report.shifts if shift.kind != "answers"}
    answers = [shift for shift in report.shifts if shift.kind == "answers"]
    answers.sort(key=lambda shift: (shift.chance, -shift.distance))
    plots = [
        _plot(numbers[name], before.values[:, column], now.values[:, column])
        for column, name in enumerate(FEATURES)
    ]
    text: str = (
        _environment()
        .get_template("drift.html.j2")
        .render(
            report=report,
            plots=plots,
            answers=answers[:SHOWN_CLASSES],
            hidden=len(answers[SHOWN_CLASSES:]),
            widest=max(max(shift.before, shift.now) for shift in answers),
        )
    )
    return text


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        # The evaluation's style, so that the pages look like one thing.
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("linnet.monitoring"), jinja2.PackageLoader("linnet.evaluation")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["chance"] = lambda value: f"{value:.4f}"
    environment.filters["number"] = lambda value: f"{value:.3f}"
    return environment


def _plot(shift: Shift, before: Floats, now: Floats) -> Plot:
    low, high = np.quantile(np.concatenate([before, now]), [0.005, 0.995])
    if high <= low:
        low, high = low - 0.5, high + 0.5
    bins = np.linspace(low, high, BINS + 1)
    heights = [
        np.histogram(values.clip(low, high), bins)[0] / len(values) for values in (before, now)
    ]
    tallest = max(float(each.max()) for each in heights)
    first, second = ((each / tallest).round(4).tolist() for each in heights)
    return Plot(shift, ABOUT[shift.name], float(low), float(high), first, second)

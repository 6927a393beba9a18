"""A search as pictures: its history, its trials by epoch, what mattered, what went together."""

import textwrap
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any, Protocol

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

_MOST_TICKS = 12
_LOG_SPAN = 30.0
_LABEL_WIDTH = 20


class Trial(Protocol):
    """What is drawn of a trial."""

    @property
    def number(self) -> int:
        """Return its place, from 1."""

    @property
    def outcome(self) -> str:
        """Return how it ended."""

    @property
    def value(self) -> float | None:
        """Return what it reached."""

    @property
    def drawn(self) -> Mapping[str, Any]:
        """Return the settings that were drawn for it."""

    @property
    def by_epoch(self) -> Sequence[float]:
        """Return its values by epoch."""


def draw(trials: Sequence[Trial], importance: Mapping[str, float], monitor: str) -> dict[str, str]:
    """Return the plots as SVG, by name; those that there is something to show of."""
    smaller_is_better = monitor == "val_loss"
    figures = {
        "history": _history(trials, monitor, smaller_is_better),
        "epochs": _epochs(trials, monitor),
    }
    if importance:
        figures["importance"] = _importance(importance)
    complete = [trial for trial in trials if trial.outcome == "complete"]
    if complete and len(trials) > 1:
        figures["parallel-coordinates"] = _parallel(trials, monitor, smaller_is_better)
    return {name: svg(figure) for name, figure in figures.items()}


def _history(trials: Sequence[Trial], monitor: str, smaller_is_better: bool) -> Figure:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for outcome, marker, colour in (("complete", "o", "tab:blue"), ("stopped early", "x", "0.6")):
        some = [(t.number, t.value) for t in trials if t.outcome == outcome and t.value is not None]
        axes.scatter(
            [number for number, _ in some],
            [value for _, value in some],
            marker=marker,
            color=colour,
            label=outcome,
        )
    done = [(t.number, t.value) for t in trials if t.outcome == "complete" and t.value is not None]
    best = np.minimum if smaller_is_better else np.maximum
    axes.step(
        [number for number, _ in done],
        best.accumulate([value for _, value in done]) if done else [],
        where="post",
        color="tab:orange",
        label="best so far",
    )
    axes.set(xlabel="trial", ylabel=monitor)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def _epochs(trials: Sequence[Trial], monitor: str) -> Figure:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for trial in trials:
        colour = "tab:blue" if trial.outcome == "complete" else "0.6"
        epochs = range(1, len(trial.by_epoch) + 1)
        axes.plot(epochs, trial.by_epoch, color=colour, alpha=0.6, marker=".")
    axes.set(xlabel="epoch", ylabel=monitor, title="blue: to the end; grey: stopped early")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _importance(importance: Mapping[str, float]) -> Figure:
    figure = Figure(figsize=(7, 0.8 + 0.4 * len(importance)), layout="constrained")
    axes = figure.add_subplot()
    names = sorted(importance, key=lambda name: importance[name])
    axes.barh(names, [importance[name] for name in names], color="tab:blue")
    axes.set(xlabel="share of the variance of complete trials")
    return figure


def _parallel(trials: Sequence[Trial], monitor: str, smaller_is_better: bool) -> Figure:
    """Draw a line per trial over an axis per dimension; the darker, the better."""
    shown = [trial for trial in trials if trial.value is not None]
    names = sorted({name for trial in shown for name in trial.drawn})
    figure = Figure(figsize=(max(7.0, 1.6 * (len(names) + 1)), 4.5), layout="constrained")
    axes = figure.add_subplot()
    columns = [_column(axes, x, [t.drawn.get(n) for t in shown]) for x, n in enumerate(names)]
    columns.append(_column(axes, len(names), [trial.value for trial in shown]))
    ranks = np.argsort(np.argsort(columns[-1]))
    shares = ranks / max(1, len(shown) - 1)
    shade = mpl.colormaps["Blues"]
    for row, trial in enumerate(shown):
        share = 1 - shares[row] if smaller_is_better else shares[row]
        axes.plot(
            [column[row] for column in columns],
            color=shade(0.2 + 0.8 * share),
            linestyle="-" if trial.outcome == "complete" else ":",
        )
    axes.set_xticks(range(len(columns)), [*names, monitor], rotation=20, ha="right")
    axes.set_yticks([])
    axes.set(ylim=(-0.05, 1.05), title="dark: good; dotted: stopped early")
    return figure


def _column(axes: Axes, x: int, values: Sequence[Any]) -> NDArray[np.float64]:
    """Return where an axis has these values, 0 to 1 and NaN for none, and label its ends."""
    axes.axvline(x, color="0.85", zorder=0)
    known = [value for value in values if value is not None]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)
    if numeric and len(set(known)) > 1:
        numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        if low > 0 and high / low > _LOG_SPAN:
            places = (np.log(numbers) - np.log(low)) / (np.log(high) - np.log(low))
        else:
            places = (numbers - low) / (high - low)
        ticks = {0.0: f"{low:.3g}", 1.0: f"{high:.3g}"}
    else:
        kinds = sorted({str(value) for value in known})
        steps = max(1, len(kinds) - 1)
        at = {kind: place / steps for place, kind in enumerate(kinds)}
        places = np.array([np.nan if v is None else at[str(v)] for v in values], dtype=float)
        ticks = {place: kind for kind, place in list(at.items())[:_MOST_TICKS]}
    for place, text in ticks.items():
        label = textwrap.fill(text, _LABEL_WIDTH, max_lines=3, placeholder=" …")
        axes.text(x, place, label, fontsize=7, ha="center", va="center", backgroundcolor="w")
    return np.asarray(places, dtype=np.float64)


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element, the same every time."""
    out = StringIO()
    with mpl.rc_context({"svg.hashsalt": "linnet"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]

"""Write docs/recipes.md and its plots from the records: `python -m recipes.page`."""

import json
import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jinja2
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from linnet.evaluation.metrics import label
from linnet.search_space import Choices
from linnet.training import search_plots
from recipes.plan import FOLDER, Plan, read_plan
from recipes.record import Record, best_of_studies, members, read_records
from recipes.trying import tried

DOCS = FOLDER.parent / "docs"
_WEIGHTS = {"none": "from scratch", "hub": "timm's hub"}


def main() -> None:
    plan, records = read_plan(), read_records()
    (DOCS / "recipes.md").write_text(render(plan, records), encoding="utf-8")
    plots = DOCS / "recipes"
    plots.mkdir(exist_ok=True)
    for name, svg in drawn(plan, records).items():
        (plots / f"{name}.svg").write_text(svg, encoding="utf-8")


def render(plan: Plan, records: Mapping[str, Record]) -> str:
    """Return the page; what is not recorded is said to be not run."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "interval": interval,
        "label": label,
        "number": number,
        "weights": weights,
    }
    template = environment.get_template("recipes.md.j2")
    best = best_of_studies(plan, records)
    studies = {
        study: [
            {"words": words(plan, study, name), "record": records[name]}
            for name in members(plan, study, best)
            if name in records
        ]
        for study in plan.studies
    }
    loads = [record.busy for record in records.values()]
    page = template.render(
        plan=plan,
        records=records,
        studies=studies,
        busy=(min(loads), max(loads)) if loads else None,
        tried=list(tried()),
        plots=sorted(drawn(plan, records)),
    )
    return re.sub(r"\n{3,}", "\n\n", page)


def interval(metric: Mapping[str, float | None] | None) -> str:
    """Return a value with its interval, as 0.912 (0.880–0.941)."""
    if metric is None or metric.get("value") is None:
        return "–"
    return f"{metric['value']:.3f} ({metric['low']:.3f}–{metric['high']:.3f})"


def number(value: float | None) -> str:
    """Return three decimals, or a dash for none."""
    return "–" if value is None else f"{value:.3f}"


def weights(settings: Mapping[str, Any]) -> str:
    """Return in words what a network began from."""
    return _WEIGHTS.get(settings["weights"], "ImageNet, from a file")


def words(plan: Plan, study: str, name: str) -> str:
    """Return what tells a run apart in a study: the one that it goes on from has another name."""
    run = plan.runs[name]
    return run.words if run.study == study else plan.studies[study].first


def drawn(plan: Plan, records: Mapping[str, Record]) -> dict[str, str]:
    """Return the plots as SVG: each study by epoch, each search by trial and by epoch."""
    best = best_of_studies(plan, records)
    plots = {}
    for study in plan.studies:
        names = [name for name in members(plan, study, best) if name in records]
        lines = {words(plan, study, name): _by_epoch(records[name]) for name in names}
        if len(lines) > 1:
            plots[study] = by_epoch(lines, "validation accuracy")
    for name, record in records.items():
        if record.search is not None:
            trials = [SimpleNamespace(**trial) for trial in _named(record.search["trials"])]
            found = search_plots.draw(trials, record.search["importance"], record.monitor)
            plots |= {f"{name}-{plot}": svg for plot, svg in found.items()}
    return plots


def _named(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return trials with words for groups of settings, as a search's own page has them."""
    drawn = {value for trial in trials for value in trial["drawn"].values()}
    groups = sorted(each for each in drawn if isinstance(each, str) and each.startswith("{"))
    words = Choices(tuple(json.loads(group) for group in groups)).words

    def named(drawn: Mapping[str, Any]) -> dict[str, Any]:
        return {name: words.get(value, value) for name, value in drawn.items()}

    return [{**trial, "drawn": named(trial["drawn"])} for trial in trials]


def by_epoch(lines: Mapping[str, Sequence[float]], what: str) -> str:
    """Return curves over epochs as SVG."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for name, values in lines.items():
        axes.plot(range(1, len(values) + 1), values, marker=".", label=name)
    axes.set(xlabel="epoch", ylabel=what)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.legend()
    return search_plots.svg(figure)


def _by_epoch(record: Record) -> list[float]:
    return [float(row["val_accuracy"]) for row in record.epochs]


if __name__ == "__main__":
    main()

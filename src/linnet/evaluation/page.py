"""The report as one self-contained HTML page that a person reads, in light and dark."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import jinja2
import numpy as np
from PIL import Image

from linnet.data.pictures import decode
from linnet.errors import PictureError
from linnet.evaluation import metrics
from linnet.evaluation.comparison import Comparison
from linnet.evaluation.corruptions import SEVERITIES
from linnet.evaluation.overlay import COLOURS as COLOUR_SCALE
from linnet.evaluation.overlay import overlay
from linnet.evaluation.panels import Panel
from linnet.evaluation.report import Report
from linnet.evaluation.slices import SMALL, Slice, worst_slice
from linnet.evaluation.thresholds import Aim
from linnet.inference.predict import Predictions
from linnet.settings import DecisionSettings, Metric

THUMBNAIL_PX = 200
CURVE_POINTS = 120
NUMBERED_CLASSES = 12
MATRIX_CLASSES = 60
COLOURS = 8

ABOUT: dict[Metric, str] = {
    "accuracy": "share of pictures named rightly",
    "balanced_accuracy": "share named rightly in each class, averaged over classes",
    "macro_precision": "how often a named class is the true one, averaged over classes",
    "macro_recall": "how much of a class is found, averaged over classes",
    "macro_f1": "harmonic mean of precision and recall, averaged over classes",
    "roc_auc": "chance to rank a picture of the class above one of another",
    "pr_auc": "average precision, averaged over classes",
    "log_loss": "surprise at the true class, lower is better",
    "calibration_error": "gap between confidence and accuracy, lower is better",
}


@dataclass(frozen=True)
class Curve:
    """A line over the unit square; `points` are drawn, `colour` 0 is the quiet one."""

    name: str
    points: list[tuple[float, float]]
    colour: int
    note: str


@dataclass(frozen=True)
class Confusion:
    """Pictures of one class that were taken for another."""

    true: str
    predicted: str
    pictures: int
    share: float


@dataclass(frozen=True)
class ClassCost:
    """What a class's mistakes cost: 1 each, or by the matrix that thresholds were fitted for.

    `trained` is its share of the training pictures; `false` counts pictures of other classes that
    were taken for it.
    """

    name: str
    trained: float
    missed: int
    false: int
    cost: float
    share: float


def render(report: Report, predictions: Predictions, pictures: Mapping[str, bytes]) -> str:
    """Return the page; `pictures` are the shown ones' encoded bytes by key."""
    roc, pr = _curves(report, predictions)
    lines = _threshold_curves(report)
    text: str = (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            about=ABOUT,
            roc=roc,
            pr=pr,
            severities=SEVERITIES,
            worst=_worst(report),
            small=SMALL,
            undivided=_undivided(report),
            thresholds=lines,
            thresholds_marks=[(at, curve.colour) for curve, at in lines],
            confusions=_confusions(report),
            costs=_costs(report),
            priced=_priced(report),
            matrix=_matrix(report),
            numbered=len(report.classes) <= NUMBERED_CLASSES,
            wrong=report.pictures - int(np.trace(np.array(report.confusion))),
            overlays={
                panel.key: _overlay(pictures[panel.key], panel)
                for panel in report.panels
                if panel.key in pictures
            },
            colours=COLOUR_SCALE,
            thumbnails={key: _thumbnail(encoded) for key, encoded in pictures.items()},
            fullest_bin=max(each.pictures for each in report.calibration),
            compared=isinstance(report.comparison, Comparison),
        )
    )
    return text


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("linnet.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["signed"] = _signed
    environment.filters["share"] = _share
    environment.filters["words"] = metrics.label
    return environment


def _signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _share(value: float) -> str:
    """Return a percentage that says 100 only where it is all."""
    text = f"{value:.1%}"
    return "> 99.9%" if text == "100.0%" and value < 1 else text.replace("100.0%", "100%")


def _curves(report: Report, predictions: Predictions) -> tuple[list[Curve], list[Curve]]:
    """Return each class's ROC and PR curve; with many classes only the worst are coloured."""
    roc, pr = [], []
    coloured = _coloured(report)
    for index, row in enumerate(report.per_class):
        scores, positive = predictions.probabilities[:, index], predictions.labels == index
        if row.roc_auc is None or row.pr_auc is None:
            continue
        points = metrics.roc_curve(scores, positive, row.name, points=CURVE_POINTS)
        recall, precision = metrics.precision_recall_curve(scores, positive, points=CURVE_POINTS)
        colour = coloured.get(index, 0)
        roc.append(Curve(row.name, _pairs(points.fpr, points.tpr), colour, _number(row.roc_auc)))
        pr.append(Curve(row.name, _pairs(recall, precision), colour, _number(row.pr_auc)))
    return _quiet_first(roc), _quiet_first(pr)


def _threshold_curves(report: Report) -> list[tuple[Curve, float]]:
    """Return lines over a class's threshold, each with its colour and where the threshold lies.

    Of two classes: the precision, recall and aim of the one looked for. Of more: the aim, of the
    classes whose threshold moved most.
    """
    fitted = report.thresholds
    if fitted is None or not fitted.curves:
        return []
    even = 1 / len(report.classes)
    chosen = fitted.thresholds or dict.fromkeys(report.classes, even)
    if len(report.classes) == 2:
        (curve,) = fitted.curves
        highest = max(1.0, *curve.value)
        precision = [
            (at, value)
            for at, value in zip(curve.threshold, curve.precision, strict=True)
            if value is not None
        ]
        drawn = [
            Curve("precision", precision, 1, ""),
            Curve("recall", _pairs(curve.threshold, curve.recall), 2, ""),
        ]
        if fitted.aim != "recall_at_precision":
            value = _pairs(curve.threshold, (value / highest for value in curve.value))
            scale = "" if highest == 1 else f"1.0 is {highest:.3g}"
            drawn.append(Curve(fitted.words, value, 3, scale))
        return [(line, chosen[curve.name]) for line in drawn]
    highest = max(1.0, *(max(curve.value) for curve in fitted.curves))
    ranked = sorted(fitted.curves, key=lambda curve: -abs(np.log(chosen[curve.name] / even)))
    return [
        (
            Curve(
                curve.name,
                _pairs(curve.threshold, (value / highest for value in curve.value)),
                colour,
                _number(chosen[curve.name]),
            ),
            chosen[curve.name],
        )
        for colour, curve in enumerate(ranked[:COLOURS], start=1)
    ]


def _coloured(report: Report) -> dict[int, int]:
    areas = {
        index: row.roc_auc for index, row in enumerate(report.per_class) if row.roc_auc is not None
    }
    chosen = list(areas)
    if len(chosen) > COLOURS:
        chosen = sorted(chosen, key=lambda index: areas[index])[:5]
    return {index: colour for colour, index in enumerate(chosen, start=1)}


def _quiet_first(curves: list[Curve]) -> list[Curve]:
    """Return the curves with the quiet ones first, so that the coloured lie on top."""
    return sorted(curves, key=lambda curve: (curve.colour > 0, curve.colour))


def _pairs(x: Iterable[float], y: Iterable[float]) -> list[tuple[float, float]]:
    return [(round(float(a), 4), round(float(b), 4)) for a, b in zip(x, y, strict=True)]


def _matrix(report: Report) -> list[list[tuple[int, int]]] | None:
    """Return rows of (pictures, per cent of the true class), or nothing for too many classes."""
    if len(report.classes) > MATRIX_CLASSES:
        return None
    return [
        [(count, round(100 * count / max(1, sum(row)))) for count in row]
        for row in report.confusion
    ]


def _confusions(report: Report, most: int = 10) -> list[Confusion]:
    table = np.array(report.confusion)
    np.fill_diagonal(table, 0)
    found = []
    for cell in np.argsort(-table, axis=None, kind="stable")[:most]:
        true, predicted = divmod(int(cell), len(report.classes))
        count = int(table[true, predicted])
        if count:
            names = report.classes[true], report.classes[predicted]
            found.append(Confusion(*names, count, count / sum(report.confusion[true])))
    return found


def _worst(report: Report) -> Slice | None:
    """Return the worst slice, if it is worse than all pictures are."""
    found, overall = worst_slice(report.slices), report.metrics["accuracy"].value
    return None if found is None or overall is None or found.accuracy >= overall else found


def _undivided(report: Report) -> list[str]:
    """Return the columns that were asked for, and in which all test pictures are the same."""
    found = {row.by for row in report.slices}
    return [by for by in report.settings.get("slices", ()) if by not in found]


def _priced(report: Report) -> bool:
    """Return whether mistakes have the prices of a cost matrix."""
    return report.thresholds is not None and report.thresholds.aim == "cost"


def _costs(report: Report) -> list[ClassCost]:
    table, prices = np.array(report.confusion), 1.0 - np.eye(len(report.classes))
    if _priced(report):
        settings = DecisionSettings.parse(report.settings["decision"])
        prices = Aim.of(report.classes, settings).cost
    paid = (table * prices).sum(axis=1)
    return [
        ClassCost(
            name=row.name,
            trained=report.prior[index],
            missed=row.support - int(table[index, index]),
            false=row.predicted - int(table[index, index]),
            cost=float(paid[index]),
            share=float(paid[index] / paid.sum()) if paid.any() else 0.0,
        )
        for index, row in enumerate(report.per_class)
    ]


def _thumbnail(encoded: bytes) -> str:
    """Return a data URI of the picture, not larger than a thumbnail."""
    try:
        picture = decode(encoded, at_least_px=THUMBNAIL_PX)
    except PictureError:
        return ""
    small = max(picture.size) <= THUMBNAIL_PX // 2
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR)
    return _data_uri(picture, "png" if small else "jpeg")


def _overlay(encoded: bytes, panel: Panel) -> str:
    """Return a data URI of the picture with what speaks for its answer, as large as a thumbnail."""
    try:
        picture = decode(encoded, at_least_px=THUMBNAIL_PX)
    except PictureError:
        return ""
    scale = THUMBNAIL_PX / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    return _data_uri(overlay(picture.resize((size[0], size[1]), how), panel.cells()), "jpeg")


def _data_uri(picture: Image.Image, kind: str) -> str:
    file = BytesIO()
    picture.save(file, kind, quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

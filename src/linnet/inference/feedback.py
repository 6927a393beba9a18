"""True labels that come back: held against the answers that this server remembers, and kept.

A pod knows its own answers only, and a gateway sends a label to any of them. So what is not known
here is kept in the prediction log, where `linnet monitor` finds the answer that it belongs to. What
is counted here is then a fair sample of each release's feedback.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from linnet.errors import RequestError
from linnet.inference.metrics import Metrics
from linnet.inference.prediction_log import PredictionLog, Told
from linnet.inference.request_id import safe_id
from linnet.inference.settings import ServeSettings
from linnet.inference.v2 import short

MOST_LABELS = 1000
_FORM = (
    'send {"request_id": "…", "label": "rose"}, of several pictures with "number": 0, 1, …, '
    'or {"feedback": [such objects]}'
)


@dataclass(slots=True)
class _Remembered:
    release: str
    labels: tuple[str, ...]
    told: set[int]


@dataclass(frozen=True)
class Taken:
    """What became of labels: `counted` here, `repeated` ones, and ids whose answer is elsewhere."""

    counted: int
    repeated: int
    kept: tuple[str, ...]


class Feedback:
    """The last answers of a server, and what they are counted in. On the event loop's thread."""

    def __init__(self, settings: ServeSettings, metrics: Metrics, log: PredictionLog) -> None:
        self.on = settings.feedback
        self._most = settings.feedback_requests
        self._metrics = metrics
        self._log = log
        self._answers: OrderedDict[tuple[str, str], _Remembered] = OrderedDict()

    def remember(self, model: str, release: str, request_id: str, labels: Sequence[str]) -> None:
        """Remember what was answered; the oldest answers are forgotten."""
        if not self.on:
            return
        self._answers[model, request_id] = _Remembered(release, tuple(labels), set())
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)

    def take(self, model: str, classes: Sequence[str], values: dict[str, Any]) -> Taken:
        """Count true labels of a model with these classes, and keep them in the log.

        Raises:
            RequestError: feedback is off, the labels are not of this form, too many or of no class,
                a request is unknown and there is no log to look it up in, or there is no room.
        """
        if not self.on:
            raise RequestError(
                "feedback is off: start the server with --feedback, or give `linnet feedback` a "
                "file",
                status=403,
            )
        rows = [self._told(model, classes, entry) for entry in _entries(values)]
        unknown = [row.request_id for row in rows if row.label is None]
        if unknown and not self._log.on:
            raise RequestError(
                f"there is no request {short(unknown[0])} with such a picture among the last "
                f"{len(self._answers)} that this server answered ({len(unknown)} of {len(rows)} "
                "are unknown, none was counted): send the X-Request-ID of an answer soon after it, "
                "or serve with --log-to, so that labels find answers of long ago and of other pods",
                status=404,
            )
        if self._log.on and not self._log.tell(rows):
            raise RequestError(
                "there is no room to keep labels: try again in a minute",
                status=503,
                retry_after_s=60,
            )
        counted = sum(self._count(row) for row in rows if row.label is not None)
        return Taken(counted, len(rows) - len(unknown) - counted, tuple(dict.fromkeys(unknown)))

    def _told(self, model: str, classes: Sequence[str], entry: Any) -> Told:
        match entry:
            case {"request_id": str(id), **more} if more.keys() <= {"label", "number"}:
                label: Any = more.get("label", "")
                number: Any = more.get("number", 0)
            case _:
                raise RequestError(f"feedback {short(entry)} is of another form: {_FORM}")
        if safe_id(id) is None or type(number) is not int or not 0 <= number < 1 << 16:
            raise RequestError(f"feedback {short(entry)} names no picture of a request: {_FORM}")
        if label is not None and label not in classes:
            raise RequestError(
                f"label {short(label)} is no class of {model}: send one of "
                f"{', '.join(classes[:20])}{', …' if len(classes) > 20 else ''}, or null for a "
                "picture of none of them"
            )
        known = self._answers.get((model, id))
        if known is None or number >= len(known.labels):
            return Told(model, id, number, label, None, None)
        return Told(model, id, number, label, known.release, known.labels[number])

    def _count(self, row: Told) -> bool:
        """Count a label once for each picture."""
        known = self._answers[row.model, row.request_id]
        if row.number in known.told:
            return False
        known.told.add(row.number)
        right = str(row.label == row.true_label).lower()
        self._metrics.feedback.labels(row.model, known.release, right).inc()
        return True


def _entries(values: dict[str, Any]) -> list[Any]:
    entries = values.get("feedback", [values])
    if not isinstance(entries, list) or not entries:
        raise RequestError(f"feedback is no list of labels: {_FORM}")
    if len(entries) > MOST_LABELS:
        raise RequestError(
            f"{len(entries)} labels were sent, allowed are {MOST_LABELS}: send several requests",
            status=413,
        )
    return entries

"""Pictures into a project of Label Studio, with the release's answers as what is chosen already."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from linnet.annotation.label_studio import LabelStudio
from linnet.annotation.labelling import Labelling
from linnet.annotation.selection import Candidate, Order, choose
from linnet.errors import AnnotationError
from linnet.progress import track
from linnet.stores.connections import Connections

log = logging.getLogger(__name__)

_AT_ONCE = 20
_MOST_BYTES = 64 << 20
_DIGITS = 6


@dataclass(frozen=True)
class Imported:
    """What was sent to a project: the least certain first.

    `known` pictures were there already, by their content; `unusable` ones can't be shown.
    """

    project: str
    url: str
    sent: int
    known: int
    unusable: int


def import_pictures(
    studio: LabelStudio,
    title: str,
    place: str,
    *,
    order: Order = "margin",
    limit: int = 200,
    release: str | None = None,
    model: str | None = None,
    hours: float | None = None,
    connections: Connections | None = None,
) -> Imported:
    """Send the pictures of a place that a release is least sure of to a project.

    `place`, `release`, `model` and `hours` as `choose` has them. What is there already is not sent
    again, so a call that was interrupted may be made again.

    Raises:
        AnnotationError: or a subclass: the project is of other classes, Label Studio can't be
            reached or refuses.
        LinnetError: the place can't be read; says why.
    """
    project = studio.get(title)
    labelling = Labelling.parse(project.config, title)
    known = {str(task["data"].get("sha256")) for task in studio.tasks(project.id)}
    chosen = choose(
        place,
        order=order,
        limit=limit,
        known=known,
        release=release,
        model=model,
        hours=hours,
        connections=connections,
    )
    _require_classes(chosen.candidates, labelling, title)
    batches = list(_batches(chosen.candidates))
    for candidates in track(batches, "send pictures", total=len(batches)):
        by_name = {f"{c.sha256}.{c.suffix}": c for c in candidates}
        studio.add_pictures(
            project.id,
            {name: candidate.encoded for name, candidate in by_name.items()},
            partial(_task, by_name, labelling),
        )
    url = f"{studio.address}/projects/{project.id}/data"
    return Imported(title, url, len(chosen.candidates), chosen.known, chosen.unusable)


def _require_classes(candidates: Sequence[Candidate], labelling: Labelling, title: str) -> None:
    for candidate in candidates:
        if candidate.answer.label not in labelling.classes:
            raise AnnotationError(
                f"{candidate.answer.release} answers {candidate.answer.label!r}, which project "
                f"{title!r} does not ask for ({', '.join(labelling.classes)}): give the project "
                "of this model with --project, or make one by `linnet annotate setup`"
            )


def _batches(candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    rest = iter(candidates)
    while batch := list(islice(rest, _AT_ONCE)):
        start = size = 0
        for end, candidate in enumerate(batch):
            size += len(candidate.encoded)
            if size > _MOST_BYTES and end > start:
                yield batch[start:end]
                start, size = end, len(candidate.encoded)
        yield batch[start:]


def _task(
    candidates: Mapping[str, Candidate], labelling: Labelling, name: str, address: str
) -> dict[str, Any]:
    candidate = candidates[name]
    answer = candidate.answer
    data = {
        labelling.picture: address,
        "key": answer.key,
        "answer": answer.label,
        "score": round(answer.score, _DIGITS),
        "margin": round(answer.margin, _DIGITS),
        "entropy": round(answer.entropy, _DIGITS),
        "release": answer.release,
        "sha256": candidate.sha256,
    }
    prediction = labelling.prediction(answer.label, round(answer.score, _DIGITS), answer.release)
    return {"data": data, "predictions": [prediction]}

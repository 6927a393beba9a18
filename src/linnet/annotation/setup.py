"""A project of Label Studio for a release's classes, made or found."""

import logging
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from linnet.annotation.label_studio import LabelStudio
from linnet.annotation.labelling import Labelling, labelling_of
from linnet.release.opening import open_release
from linnet.stores.connections import Connections

log = logging.getLogger(__name__)

_ABOUT = (
    "What does the picture show? Choose one, by its key if you like, and submit. The choice that "
    "is made already is the model's. Skip what shows none of them."
)


@dataclass(frozen=True)
class Prepared:
    """A project that is ready for pictures; `made` says whether this call made it."""

    project: str
    url: str
    classes: tuple[str, ...]
    made: bool


def set_up(
    studio: LabelStudio,
    release: str,
    *,
    title: str | None = None,
    votes: int = 1,
    backend: str | None = None,
    webhook: str | None = None,
    connections: Connections | None = None,
) -> Prepared:
    """Make a project that asks for a release's classes, or check that the one there does.

    `title`: the model's name without it. `votes`: annotations that each picture gets. `backend`:
    where `linnet annotate backend` listens. `webhook`: what is called when annotations change.

    Raises:
        ReleaseError: the release is absent or not whole.
        AnnotationError: or a subclass: the project asks for other classes, Label Studio can't be
            reached or refuses.
    """
    with TemporaryDirectory(prefix="linnet-annotate-") as scratch:
        opened = open_release(release, scratch=Path(scratch), connections=connections)
    classes, name = tuple(opened.manifest["classes"]), title or opened.model
    project = studio.find(name)
    made = project is None
    if project is None:
        project = studio.make(
            name,
            labelling_of(classes),
            expert_instruction=_ABOUT,
            show_instruction=True,
            maximum_annotations=votes,
            sampling="Sequential sampling",
            show_collab_predictions=True,
        )
        log.info("made the project %s", name)
    Labelling.parse(project.config, name).require(classes, name, f"{opened.model} {opened.version}")
    if backend is not None and studio.connect_backend(project.id, backend, "Linnet"):
        log.info("%s pre-labels for it", backend)
    if webhook is not None and studio.connect_webhook(project.id, webhook):
        log.info("%s is called when annotations change", webhook)
    return Prepared(name, f"{studio.address}/projects/{project.id}/data", classes, made)

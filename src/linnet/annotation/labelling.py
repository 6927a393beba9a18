"""The labelling configuration: one picture, one of the release's classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from linnet.errors import AnnotationError

# Keys that Label Studio gives no other meaning to while choices are made.
_HOTKEYS = "1234567890qwetyiopzxcbn"
_FILTERED_FROM = 30


@dataclass(frozen=True)
class Labelling:
    """What the tags of a configuration are called, and the classes that can be chosen.

    `picture` is the picture's name in a task's data.
    """

    control: str
    object: str
    picture: str
    classes: tuple[str, ...]

    @classmethod
    def parse(cls, config: str, title: str) -> "Labelling":
        """Return what a configuration asks.

        Raises:
            AnnotationError: it does not ask for one choice about one picture.
        """
        try:
            view = ElementTree.fromstring(config)
        except ElementTree.ParseError as error:
            raise AnnotationError(f"the labelling of {title!r} is no XML ({error})") from error
        pictures, choices = view.findall(".//Image"), view.findall(".//Choices")
        if len(pictures) != 1 or len(choices) != 1 or choices[0].get("choice") == "multiple":
            raise AnnotationError(
                f"the labelling of project {title!r} has {len(pictures)} Image and {len(choices)} "
                "Choices: expected one of each, with choice='single'. Give the name of another "
                "project with --project; `linnet annotate setup` makes it"
            )
        picture, choice = pictures[0], choices[0]
        return cls(
            control=choice.get("name", ""),
            object=picture.get("name", ""),
            picture=picture.get("value", "").lstrip("$"),
            classes=tuple(
                one.get("alias") or one.get("value") or "" for one in choice.findall(".//Choice")
            ),
        )

    def require(self, classes: Sequence[str], title: str, whose: str) -> None:
        """Check that the project's classes are these.

        Raises:
            AnnotationError: they are not.
        """
        if set(self.classes) != set(classes):
            more = ", ".join(sorted(set(self.classes) - set(classes))) or "none"
            fewer = ", ".join(sorted(set(classes) - set(self.classes))) or "none"
            raise AnnotationError(
                f"project {title!r} asks for other classes than {whose} has: {more} only in the "
                f"project, {fewer} only in {whose}. Change the project's labelling, or give "
                "another name with --project"
            )

    def prediction(self, label: str, score: float, release: str) -> dict[str, Any]:
        """Return a release's answer as Label Studio keeps it."""
        choice = {
            "from_name": self.control,
            "to_name": self.object,
            "type": "choices",
            "value": {"choices": [label]},
        }
        return {"result": [choice], "score": score, "model_version": release}

    def vote(self, annotation: Mapping[str, Any]) -> str | None:
        """Return the class that an annotation chose, None when it chose none."""
        for part in annotation.get("result") or ():
            if part.get("from_name") == self.control and part.get("type") == "choices":
                chosen = part["value"].get("choices") or []
                return str(chosen[0]) if len(chosen) == 1 else None
        return None


def labelling_of(classes: Sequence[str]) -> str:
    """Return the configuration for a choice of these classes, with hotkeys for the first ones."""
    view = ElementTree.Element("View")
    if len(classes) > _FILTERED_FROM:
        ElementTree.SubElement(view, "Filter", name="filter", toName="label", minlength="0")
    asked = {"name": "label", "toName": "picture", "choice": "single", "required": "true"}
    choices = ElementTree.SubElement(view, "Choices", {**asked, "showInline": "true"})
    for number, name in enumerate(classes):
        hotkey = {"hotkey": _HOTKEYS[number]} if number < len(_HOTKEYS) else {}
        ElementTree.SubElement(choices, "Choice", {"value": name, **hotkey})
    ElementTree.SubElement(view, "Image", name="picture", value="$picture", zoomControl="true")
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode")

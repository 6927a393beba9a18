"""What Label Studio is told to ask, and what is read of a project that people have changed."""

from xml.etree import ElementTree

import pytest

from linnet.annotation.labelling import Labelling, labelling_of
from linnet.errors import AnnotationError

CLASSES = ("daisy", "naïve <rose> & co", "郁金香")


def test_the_classes_come_back_out_of_the_configuration() -> None:
    labelling = Labelling.parse(labelling_of(CLASSES), "flowers")
    assert labelling == Labelling("label", "picture", "picture", CLASSES)
    labelling.require(tuple(reversed(CLASSES)), "flowers", "flowers/v1")


def test_hotkeys_are_different_and_not_needed_for_a_hundred_classes() -> None:
    config = labelling_of([f"class {n}" for n in range(100)])
    choices = ElementTree.fromstring(config).findall(".//Choice")
    keys = [choice.get("hotkey") for choice in choices if choice.get("hotkey")]
    assert len(choices) == 100
    assert len(keys) == len(set(keys)) > 10
    assert ElementTree.fromstring(config).find("Filter") is not None


def test_a_project_of_other_classes_is_told_with_what_differs() -> None:
    labelling = Labelling.parse(labelling_of(["cat", "daisy"]), "pets")
    with pytest.raises(AnnotationError, match="cat only in the project, rose only in flowers/v1"):
        labelling.require(["daisy", "rose"], "pets", "flowers/v1")


@pytest.mark.parametrize(
    "config",
    [
        "<View>",
        "<View><Text name='t' value='$text'/></View>",
        "<View><Image name='i' value='$i'/><Choices name='c' toName='i' choice='multiple'/></View>",
    ],
)
def test_a_project_that_asks_something_else_is_refused(config: str) -> None:
    with pytest.raises(AnnotationError, match="'pets'"):
        Labelling.parse(config, "pets")


def test_an_answer_of_several_classes_or_of_another_control_is_no_vote() -> None:
    labelling = Labelling.parse(labelling_of(CLASSES), "flowers")
    answer = labelling.prediction("daisy", 0.5, "flowers/v1")
    assert labelling.vote(answer) == "daisy"
    answer["result"][0]["value"]["choices"] = ["daisy", "郁金香"]
    assert labelling.vote(answer) is None
    answer["result"][0]["from_name"] = "another"
    assert labelling.vote(answer) is None
    assert labelling.vote({"result": []}) is None

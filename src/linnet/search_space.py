"""The space that a search draws train settings from, checked against them before anything runs."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from linnet.errors import SettingsError
from linnet.settings import Settings, StageSettings, TrainSettings

# Settings that change together are drawn as one of several groups under this name.
TOGETHER = "together"


class Bounds(Settings):
    """A range of numbers as the YAML has it."""

    low: float = Field(description="least value")
    high: float = Field(description="greatest value")
    log: bool = Field(False, description="draw evenly in the logarithm")
    step: float | None = Field(None, gt=0.0, description="distance of the values that are drawn")

    @model_validator(mode="after")
    def _something_to_draw(self) -> "Bounds":
        if not self.low < self.high or not math.isfinite(self.high - self.low):
            raise ValueError(f"empty range: low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0 (got {self.low:g})")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other: leave one out")
        if self.step is not None and self.step > self.high - self.low:
            raise ValueError(f"step ({self.step:g}) is wider than the range")
        return self


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `whole` ones where the setting counts."""

    low: float
    high: float
    log: bool
    step: float | None
    whole: bool

    @property
    def ends(self) -> tuple[float, float]:
        """Return the values that decide whether all of them are allowed."""
        return self.low, self.high


@dataclass(frozen=True)
class Choices:
    """One of several values; `labels` tell them apart in the storage, `words` for people."""

    values: tuple[Any, ...]

    @property
    def labels(self) -> list[str | float | int | bool | None]:
        """Return the values themselves where they are plain, and as JSON where not."""
        return [
            value if isinstance(value, str | float | int) else json.dumps(value, sort_keys=True)
            for value in self.values
        ]

    @property
    def words(self) -> dict[str, str]:
        """Return what names each group of settings, by label: what sets it apart from the others.

        That is the first setting that differs in all of them, or else those that differ in some.
        """
        groups = {json.dumps(v, sort_keys=True): v for v in self.values if isinstance(v, dict)}
        if len(groups) == 1:
            return dict.fromkeys(groups, "settings")
        told = {name: _told(name, groups) for group in groups.values() for name in group}
        kinds = {name: len(set(words.values())) for name, words in told.items()}
        apart = [name for name in told if kinds[name] == len(groups)][:1]
        apart = apart or [n for n in told if kinds[n] > 1 or len(told[n]) < len(groups)]
        return {
            label: ", ".join(told[name][label] for name in apart if label in told[name])
            or "as in train"
            for label in groups
        }


Dimension = Range | Choices
Space = dict[str, Dimension]


def read_space(space: Mapping[str, Any], base: TrainSettings) -> Space:
    """Return the dimensions by dotted name, parents before what lies below them.

    Every choice and both ends of every range are tried on the settings, one at a time.

    Raises:
        SettingsError: every wrong name, with the nearest right one, and every wrong value.
    """
    dimensions: Space = {}
    problems: list[str] = []
    for name, given in sorted(_flat("", space), key=lambda entry: entry[0].count(".")):
        try:
            dimensions[name] = _dimension(name, given, base, dimensions)
        except SettingsError as error:
            problems += str(error).splitlines()
    if problems:
        raise SettingsError("search.space can't be used:\n" + "\n".join(problems))
    return dimensions


def settings_of(base: TrainSettings, drawn: Mapping[str, Any]) -> TrainSettings:
    """Return train settings with what was drawn put into them.

    What lies below a stage that is skipped has no effect.

    Raises:
        SettingsError: the settings don't go together.
    """
    values = base.model_dump(mode="json")
    for name, value in sorted(_drawn_flat(drawn), key=lambda entry: entry[0].count(".")):
        *parents, last = name.split(".")
        place: Any = values
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[last] = value
    return TrainSettings.parse(values, "train")


def most_epochs(base: TrainSettings, space: Space) -> int:
    """Return the epochs of the longest trial."""
    total = 0
    for stage in ("head", "whole"):
        stages = [getattr(base, stage)]
        if isinstance(whole := space.get(stage), Choices):
            stages = [None if v == "skip" else StageSettings.parse(v) for v in whole.values]
        longest = max((each.epochs for each in stages if each is not None), default=0)
        drawn = space.get(f"{stage}.epochs")
        if isinstance(drawn, Range) and longest:
            longest = int(drawn.high)
        elif isinstance(drawn, Choices) and longest:
            longest = max(drawn.values)
        total += longest
    return total


def is_active(name: str, drawn: Mapping[str, Any], base: TrainSettings) -> bool:
    """Return whether a dimension matters, given what was drawn: its stage isn't skipped."""
    stage, dot, _ = name.partition(".")
    if not dot:
        return True
    if stage in drawn:
        return bool(drawn[stage] != "skip")
    return getattr(base, stage) is not None


def _told(name: str, groups: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return a setting as words for each group that has it, by the group's label.

    Text that all of them have stands by itself, files by their names if these differ.
    """
    values = {label: group[name] for label, group in groups.items() if name in group}
    texts = {value for value in values.values() if isinstance(value, str)}
    short = len({text.rpartition("/")[2] for text in texts}) == len(texts)

    def told(value: Any) -> str:
        if not isinstance(value, str):
            return f"{name} {json.dumps(value)}"
        text = value.rpartition("/")[2] if short else value
        return text if len(values) == len(groups) and value != "none" else f"{name} {text}"

    return {label: told(value) for label, value in values.items()}


def _flat(prefix: str, space: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, given in space.items():
        if isinstance(given, dict) and not {"low", "high"} & given.keys():
            yield from _flat(f"{prefix}{name}.", given)
        else:
            yield f"{prefix}{name}", given


def _drawn_flat(drawn: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in drawn.items():
        if name == TOGETHER:
            yield from value.items()
        else:
            yield name, value


def _dimension(name: str, given: Any, base: TrainSettings, above: Space) -> Dimension:
    if name in ("monitor", "keep"):
        raise SettingsError(f"  {name}: is what trials are compared by: set it in train instead")
    if isinstance(given, list):
        if not given:
            raise SettingsError(f"  {name}: empty range: expected a list of at least one choice")
        return Choices(tuple(_probe(name, value, base, above) for value in given))
    if not isinstance(given, dict):
        raise SettingsError(
            f"  {name}: expected a list of choices, or {{low, high}} with log or step "
            f"(got {given!r})"
        )
    try:
        bounds = Bounds.parse(given)
    except SettingsError as error:
        lines = (line.strip().removeprefix("settings: ") for line in str(error).splitlines()[1:])
        raise SettingsError("\n".join(f"  {name}: {line}" for line in lines)) from error
    ends = [_probe(name, end, base, above) for end in (bounds.low, bounds.high)]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        raise SettingsError(f"  {name}: takes no numbers: expected a list of choices")
    whole = all(isinstance(end, int) for end in ends)
    if whole and bounds.step is not None and not bounds.step.is_integer():
        raise SettingsError(f"  {name}: step {bounds.step:g} of a whole number must be whole")
    return Range(bounds.low, bounds.high, bounds.log, bounds.step, whole)


def _probe(name: str, value: Any, base: TrainSettings, above: Space) -> Any:
    """Return a value as the settings understand it, after trying it on them."""
    drawn: dict[str, Any] = {}
    stage, dot, _ = name.partition(".")
    if dot and getattr(base, stage, None) is None and stage in ("head", "whole"):
        choices = above.get(stage)
        stages = choices.values if isinstance(choices, Choices) else ()
        drawn = {stage: next((each for each in stages if each != "skip"), None)}
        if drawn[stage] is None:
            raise SettingsError(f"  {name}: train.{stage} is skip: give it settings, or leave out")
    if name == TOGETHER and not isinstance(value, dict):
        raise SettingsError(f"  {name}: expected mappings of settings (got {value!r})")
    if dot and stage not in ("head", "whole"):
        stage_of = getattr(base, stage, None)
        raise SettingsError(
            f"  {name}: no such setting" + ("" if stage_of is None else f"; {stage} has none below")
        )
    try:
        parsed = settings_of(base, drawn | {name: value})
    except SettingsError as error:
        lines = str(error).splitlines()[1:]
        raise SettingsError("\n".join(lines)) from error
    if name == TOGETHER:
        return value
    found: Any = parsed.model_dump(mode="json")
    for part in name.split("."):
        found = found[part]
    return found

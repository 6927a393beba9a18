"""The runs of `runs.yaml`, and the settings that each of them has."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from linnet.errors import SettingsError
from linnet.settings import RunSettings, Settings

FOLDER = Path(__file__).parent


class StandIn(Settings):
    """A set of pictures that stands in for a recipe's own, and what reading it takes."""

    words: str
    set: dict[str, Any]


class Study(Settings):
    """Runs that differ in one thing; `first` names the one that is taken over from `after`."""

    words: str
    after: str | None = None
    first: str = ""


class Run(Settings):
    """One run of a recipe's file, or of another that `settings` names, with what else is set."""

    recipe: str
    pictures: str
    words: str
    settings: str | None = None
    study: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)

    @property
    def file(self) -> Path:
        """Return the settings file."""
        return FOLDER / f"{self.settings or self.recipe}.yaml"


class Answer(Settings):
    """Which run's metric stands beside a recipe's figure."""

    recipe: str
    run: str
    metric: str
    words: str
    figure: float


class Plan(Settings):
    """All runs by name, on which pictures, and the studies that they belong to."""

    data: dict[str, StandIn]
    answers: tuple[Answer, ...]
    studies: dict[str, Study]
    runs: dict[str, Run]

    def named(self, wanted: list[str]) -> list[str]:
        """Return the runs of these names, recipes or studies, in the plan's order; all for none.

        Raises:
            SettingsError: a name is none of these.
        """
        known = {word for name, run in self.runs.items() for word in _words(name, run)}
        for word in wanted:
            if word not in known:
                raise SettingsError(
                    f"{word!r} is no run, recipe or study of {FOLDER / 'runs.yaml'}: "
                    f"expected one of {', '.join(sorted(known))}"
                )
        return [
            name
            for name, run in self.runs.items()
            if not wanted or set(wanted) & set(_words(name, run))
        ]

    def best(self) -> list[str]:
        """Return the runs of the best settings for each set."""
        return [name for name, run in self.runs.items() if run.recipe == "best"]

    def changes(self, name: str, best: Mapping[str, str]) -> dict[str, Any]:
        """Return what a run sets beyond its file; `best` has the best run of each earlier study."""
        run = self.runs[name]
        earlier = self.studies[run.study].after if run.study else None
        if earlier is None:
            return {**self.data[run.pictures].set, **run.set}
        if earlier not in best:
            raise SettingsError(f"{name} goes on from study {earlier}: run that one first")
        return {**self.changes(best[earlier], best), **run.set}


def read_plan() -> Plan:
    """Return the plan that comes with Linnet."""
    path = FOLDER / "runs.yaml"
    return Plan.parse(yaml.safe_load(path.read_text(encoding="utf-8")), where=str(path))


def overrides(changes: Mapping[str, Any]) -> list[str]:
    """Return changes as `--set` takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def placed(values: Any, places: Mapping[str, str]) -> Any:
    """Return values with `{data}` and `{weights}` replaced wherever they stand."""
    if isinstance(values, Mapping):
        return {key: placed(value, places) for key, value in values.items()}
    if isinstance(values, list):
        return [placed(value, places) for value in values]
    return values.format(**places) if isinstance(values, str) else values


def settings_of(run: Run, changes: Mapping[str, Any], places: Mapping[str, str]) -> RunSettings:
    """Return the settings of a run with its pictures and weights in place."""
    return RunSettings.load(run.file, tuple(overrides(placed(changes, places))))


def _words(name: str, run: Run) -> Iterator[str]:
    yield from (name, run.recipe)
    if run.study is not None:
        yield run.study

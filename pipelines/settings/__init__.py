"""Runs that come with Linnet, one YAML file each."""

from pathlib import Path
from typing import Any

from linnet.settings import RunSettings

DIGITS = RunSettings.load(Path(__file__).with_name("digits.yaml"))
SEARCH = RunSettings.load(Path(__file__).with_name("digits_search.yaml"))


def _sections(run: RunSettings) -> dict[str, dict[str, Any]]:
    return {name: run.section(name) for name in RunSettings.model_fields if name != "model"}


# The sections of the built-in runs: what a pipeline's parameters are when none are given.
DEFAULTS = _sections(DIGITS)
SEARCH_DEFAULTS = _sections(SEARCH)

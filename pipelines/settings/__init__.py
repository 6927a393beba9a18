"""Runs that come with Linnet, one YAML file each."""

from pathlib import Path
from typing import Any

from linnet.settings import RunSettings

DIGITS = RunSettings.load(Path(__file__).with_name("digits.yaml"))
# The sections of the built-in run: what a pipeline's parameters are when none are given.
DEFAULTS: dict[str, dict[str, Any]] = {
    name: DIGITS.section(name) for name in RunSettings.model_fields if name != "model"
}

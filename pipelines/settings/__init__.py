"""Runs that come with Linnet, one YAML file each."""

from pathlib import Path

from linnet.settings import RunSettings

DIGITS = RunSettings.load(Path(__file__).with_name("digits.yaml"))

"""Where the time of training goes: waiting for data, forward, backward, update, validation."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch

StepPart = Literal["data_wait", "forward", "backward", "update"]
Part = StepPart | Literal["validation"]
STEP_PARTS: tuple[StepPart, ...] = get_args(StepPart)
PARTS: tuple[Part, ...] = (*STEP_PARTS, "validation")

# A GPU is asked what it has done, which makes it wait, in one step of so many.
_EVERY_ON_GPU = 16


class Clock:
    """Add up what an epoch's steps spend on each of their parts.

    On a CPU every step is measured. A GPU works behind the program's back, so it is waited for at
    the parts' borders of one step in sixteen, and those stand for all.
    """

    def __init__(self) -> None:
        self._seconds: dict[StepPart, float] = {}
        self._steps = self._measured = 0
        self._last = 0.0
        self._device = torch.device("cpu")

    def begin(self, device: torch.device) -> None:
        """Begin an epoch."""
        self._seconds = dict.fromkeys(STEP_PARTS, 0.0)
        self._steps = self._measured = 0
        self._device = device
        self._wait()
        self._last = time.perf_counter()

    def lap(self, part: StepPart) -> None:
        """Count the time since the last lap as this part's."""
        if self._skipped():
            return
        self._wait()
        now = time.perf_counter()
        self._seconds[part] += now - self._last
        self._last = now

    def end_step(self) -> None:
        """Count the rest of a step as its update."""
        self.lap("update")
        self._measured += not self._skipped()
        self._steps += 1
        if not self._skipped():
            self._wait()
            self._last = time.perf_counter()

    def seconds(self) -> dict[StepPart, float]:
        """Return what the epoch's steps have spent on each part."""
        scale = self._steps / max(1, self._measured)
        return {part: seconds * scale for part, seconds in self._seconds.items()}

    def _skipped(self) -> bool:
        return self._device.type == "cuda" and self._steps % _EVERY_ON_GPU != 0

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def profile(history: Sequence[Mapping[str, Any]]) -> dict[Part, float]:
    """Return the seconds that all epochs of a history spent on each part."""
    return {part: round(sum(float(row[f"{part}_s"]) for row in history), 3) for part in PARTS}


def slowest(seconds: Mapping[Part, float]) -> Part:
    """Return the part that took the longest."""
    return max(seconds, key=lambda part: seconds[part])

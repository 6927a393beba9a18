"""Find a peak learning rate by a range test (Smith 2017, arXiv:1506.01186)."""

import csv
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader

from linnet.errors import TrainingError
from linnet.stores.objects import folder_errors
from linnet.training.loading import Batch, Order, seed_of
from linnet.training.module import Stage

log = logging.getLogger(__name__)

FILE = "rates.csv"

_LOWEST, _HIGHEST, _STEPS = 1e-6, 10.0, 100
_SMOOTHING = 0.9
# The test ends when the loss is so many times the least one.
_TOO_MUCH = 3.0
_FEWEST = 10
# A loss that falls by less than this share has no slope to go by.
_LEAST_FALL = 0.02


@dataclass(frozen=True)
class RangeTest:
    """The loss at learning rates that grow from step to step, and the rate that was chosen."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    chosen: float

    @classmethod
    def of(cls, rates: Iterable[float], losses: Iterable[float]) -> Self:
        """Choose the rate at which the smoothed loss falls fastest, two digits of it.

        The first averages, of a few batches each, are not looked at: they fall by chance. Where
        the loss hardly falls at all, as with a network that has learnt already, a tenth of the
        rate at which it is least is taken.
        """
        rates, losses = tuple(rates), tuple(losses)
        smoothed = _smoothed(losses)
        first = _FEWEST - 1
        least = first + int(np.argmin(smoothed[first:]))
        if smoothed[least] > (1 - _LEAST_FALL) * smoothed[first] or least < first + 2:
            log.warning(
                "the loss hardly falls at any learning rate (from %.4g to %.4g): taking a tenth "
                "of the rate where it is least; set lr to a number if that isn't right",
                smoothed[first],
                smoothed[least],
            )
            chosen = rates[least] / 10
        else:
            falling = slice(first, least + 1)
            slope = np.gradient(smoothed[falling], np.log(rates[falling]))
            chosen = rates[first + int(np.argmin(slope))]
        return cls(rates, losses, tuple(smoothed), float(f"{chosen:.1e}"))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return what an earlier test has written."""
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        rates, losses, smoothed = (
            tuple(float(row[name]) for row in rows) for name in ("rate", "loss", "smoothed")
        )
        return cls(rates, losses, smoothed, chosen=float(rows[0]["chosen"]))

    def write(self, path: Path) -> None:
        """Write the curve as CSV, whole or not at all."""
        partial = path.with_suffix(".partial")
        with folder_errors("write", path), partial.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("rate", "loss", "smoothed", "chosen"))
            curve = zip(self.rates, self.losses, self.smoothed, strict=True)
            table.writerows((*point, self.chosen) for point in curve)
        partial.replace(path)

    def figure(self) -> Figure:
        """Return the curve as a picture."""
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(self.rates, self.losses, color="0.8", label="loss of the batch")
        axes.plot(self.rates, self.smoothed, label="smoothed")
        axes.axvline(self.chosen, color="tab:orange", label=f"chosen: {self.chosen:g}")
        top = 1.5 * max(self.smoothed[0], min(self.smoothed))
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(0, top))
        axes.legend()
        return figure


def range_test(
    stage: Stage,
    batches: DataLoader[Batch],
    *,
    device: torch.device,
    arithmetic: Callable[[], AbstractContextManager[None]],
) -> RangeTest:
    """Train for up to a hundred steps at growing rates; the stage is afterwards as it was.

    Raises:
        TrainingError: the loss is no number from the beginning.
    """
    stage.to(device)
    before = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    torch.manual_seed(seed_of(stage.settings.seed, stage.name, "rates"))
    stage.learn()
    rates = np.geomspace(_LOWEST, _HIGHEST, _STEPS)
    losses = list(_losses(stage, rates, _endless(batches), device, arithmetic))
    stage.model.load_state_dict(before)
    stage.zero_grad(set_to_none=True)
    if len(losses) < _FEWEST:
        raise TrainingError(
            f"train.{stage.name}.lr auto: the loss is no number even at a learning rate of "
            f"{rates[len(losses)]:.1g}: check the weights and train.precision"
        )
    return RangeTest.of(rates[: len(losses)].tolist(), losses)


def _losses(
    stage: Stage,
    rates: Iterable[float],
    batches: Iterator[Batch],
    device: torch.device,
    arithmetic: Callable[[], AbstractContextManager[None]],
) -> Iterator[float]:
    optimizer = stage.new_optimizer(_LOWEST)
    clip = stage.settings.gradient_clip
    seen: list[float] = []
    for rate, (inputs, labels) in zip(rates, batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        with arithmetic():
            loss = stage.loss(stage(inputs.to(device)).float(), labels.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(stage.parameters(), clip)
        optimizer.step()
        seen.append(float(loss.detach()))
        if not np.isfinite(seen[-1]):
            return
        yield seen[-1]
        smoothed = _smoothed(seen)
        if len(seen) >= _FEWEST and smoothed[-1] > _TOO_MUCH * min(smoothed):
            return


def _endless(batches: DataLoader[Batch]) -> Iterator[Batch]:
    assert isinstance(batches.sampler, Order)
    for epoch in itertools.count():
        batches.sampler.set_epoch(epoch)
        yield from batches


def _smoothed(losses: Iterable[float]) -> list[float]:
    """Return the exponential moving average, without its pull towards zero at the beginning."""
    average, out = 0.0, []
    for step, loss in enumerate(losses, start=1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        out.append(average / (1 - _SMOOTHING**step))
    return out

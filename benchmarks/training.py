"""How near training comes to the machine's limit: `python -m benchmarks.training`.

Makes its own pictures, measures what is compared in turns, and prints ratios, because absolute
times on a shared machine mean little.

- Full fine-tuning: an epoch's pictures per second through `linnet.training` against forward,
  backward and step on one batch that is already in memory, in the same arithmetic.
- Frozen backbone: an epoch on cached features, against one that computes the features of the same
  pictures (and augments them, which is why they can't be cached).
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from linnet.settings import Augmentation, StageSettings, TrainSettings
from linnet.training.network import Classifier, build
from linnet.training.record import Row
from linnet.training.stage import Pictures, train_stage

MEAN = STD = (0.5, 0.5, 0.5)
CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="mobilenetv2_100")
    parser.add_argument("--size-px", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=10, help="batches per epoch")
    parser.add_argument("--rounds", type=int, default=5)
    wanted = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    full, full_all = full_against_limit(wanted)
    frozen, frozen_all = cached_against_uncached(wanted)
    results = {
        "measured": vars(wanted),
        "full fine-tuning / limit": {"median": full, "rounds": full_all, "target": 0.95},
        "cached / uncached frozen epoch": {"median": frozen, "rounds": frozen_all, "target": 20},
    }
    print(json.dumps(results, indent=1))


def full_against_limit(wanted: argparse.Namespace) -> tuple[float, list[float]]:
    """Return our pictures per second as a share of the limit's, the two measured in turns."""
    pictures = _pictures(wanted)
    limit = _Limit(wanted)
    ratios = []
    for _ in range(wanted.rounds):
        before = limit.pictures_per_s(wanted.batches)
        ours = _last_epoch("whole", pictures, wanted, augmentation="light", epochs=2)
        after = limit.pictures_per_s(wanted.batches)
        ratios.append(round(2 * ours["pictures_per_s"] / (before + after), 3))
    return statistics.median(ratios), ratios


def cached_against_uncached(wanted: argparse.Namespace) -> tuple[float, list[float]]:
    """Return how many times faster a frozen epoch is once its features are cached."""
    pictures = _pictures(wanted)
    ratios = []
    for _ in range(min(3, wanted.rounds)):
        uncached = _last_epoch("head", pictures, wanted, augmentation="light", epochs=2)
        cached = _last_epoch("head", pictures, wanted, augmentation="none", epochs=3)
        ratios.append(round(uncached["seconds"] / cached["seconds"], 1))
    return statistics.median(ratios), ratios


class _Limit:
    """Forward, backward and step on one batch in memory, in the faster arithmetic of the two."""

    def __init__(self, wanted: argparse.Namespace) -> None:
        side, self.batch_size = wanted.size_px, wanted.batch_size
        channels_last = torch.channels_last
        network = build(wanted.network, CLASSES).train()
        self.network = network.to(memory_format=channels_last)
        batch = torch.randn(self.batch_size, 3, side, side)
        self.batch = batch.contiguous(memory_format=channels_last)
        self.labels = torch.randint(CLASSES, (self.batch_size,))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        self.bf16 = False
        speeds = {}
        for self.bf16 in (False, True):
            self.pictures_per_s(2)
            speeds[self.bf16] = self.pictures_per_s(5)
        self.bf16 = speeds[True] > speeds[False]

    def pictures_per_s(self, batches: int) -> float:
        began = time.monotonic()
        for _ in range(batches):
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                loss = functional.cross_entropy(self.network(self.batch), self.labels)
            loss.backward()
            self.optimizer.step()
        return batches * self.batch_size / (time.monotonic() - began)


def _last_epoch(
    name: Literal["head", "whole"],
    pictures: Pictures,
    wanted: argparse.Namespace,
    *,
    augmentation: Augmentation,
    epochs: int,
) -> Row:
    """Return the history's row of the last epoch of a stage by our own path."""
    stage = StageSettings(epochs=epochs, lr=1e-4, augmentation=augmentation)
    settings = TrainSettings(
        network=wanted.network,
        size_px=wanted.size_px,
        batch_size=wanted.batch_size,
        head=stage if name == "head" else None,
        whole=stage if name == "whole" else None,
        accelerator="cpu",
    )
    model = Classifier(build(wanted.network, CLASSES), MEAN, STD)
    with tempfile.TemporaryDirectory() as folder:
        record = train_stage(
            name,
            model.to(memory_format=torch.channels_last),
            pictures,
            settings,
            folder=Path(folder) / "state",
            cache=Path(folder) / "cache",
        )
    return record.history[-1]


def _pictures(wanted: argparse.Namespace) -> Pictures:
    chance = np.random.default_rng(0)
    shape = (wanted.size_px, wanted.size_px, 3)

    def some(count: int) -> tuple[np.ndarray, np.ndarray]:
        pictures = chance.integers(0, 256, (count, *shape), dtype=np.uint8)
        return pictures, chance.integers(0, CLASSES, count)

    train, train_labels = some(wanted.batches * wanted.batch_size)
    val, val_labels = some(wanted.batch_size)
    return Pictures(train, train_labels, val, val_labels, CLASSES, key="benchmark")


if __name__ == "__main__":
    main()

"""How near training comes to the machine's limit: `python -m benchmarks.training`.

Makes its own pictures, measures what is compared in turns, and prints ratios, because absolute
times on a shared machine mean little.

- Full fine-tuning: a step through `linnet.training` against forward, backward and update on one
  batch that is already in memory, in the faster arithmetic of the two.
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
from torch.optim.optimizer import register_optimizer_step_post_hook

from linnet.settings import Augmentation, StageSettings, TrainSettings
from linnet.training.arithmetic import spare_strided_depthwise
from linnet.training.network import Classifier, build
from linnet.training.record import Row
from linnet.training.stage import Pictures, train_stage

log = logging.getLogger("benchmarks.training")

MEAN = STD = (0.5, 0.5, 0.5)
CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="mobilenetv2_100")
    parser.add_argument("--size-px", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=32, help="batches per epoch")
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    full, full_all = full_against_limit(wanted)
    frozen, frozen_all = cached_against_uncached(wanted)
    results = {
        "measured": vars(wanted),
        "full fine-tuning / limit": {"median": full, "rounds": full_all, "target": 0.95},
        "cached / uncached frozen epoch": {"median": frozen, "rounds": frozen_all, "target": 20},
    }
    print(json.dumps(results, indent=1))


def full_against_limit(wanted: argparse.Namespace) -> tuple[float, list[float]]:
    """Return our speed as a share of the limit's, from neighbouring steps of the two.

    A step of ours is all from one update of the weights to the next: loading, augmentation,
    Lightning's loop. After each, the limit takes a step of its own.
    """
    limit = _Limit(wanted)
    ours: list[float] = []
    limits: list[float] = []
    resumed_at = 0.0

    def after_update(optimizer: torch.optim.Optimizer, *_: object) -> None:
        nonlocal resumed_at
        if optimizer is limit.optimizer:
            return
        now = time.monotonic()
        ours.append(now - resumed_at)
        limits.append(limit.step_s())
        resumed_at = time.monotonic()

    hook = register_optimizer_step_post_hook(after_update)
    _last_epoch("whole", _pictures(wanted), wanted, augmentation="light", epochs=wanted.rounds)
    hook.remove()
    # The first step of an epoch has the validation and the records of the one before in it.
    pairs = [limits[step] / ours[step] for step in range(len(ours)) if step % wanted.batches]
    return round(statistics.median(pairs), 3), [round(pair, 2) for pair in sorted(pairs)]


def cached_against_uncached(wanted: argparse.Namespace) -> tuple[float, list[float]]:
    """Return how many times faster a frozen epoch is once its features are cached."""
    pictures = _pictures(wanted)
    ratios = []
    for _ in range(min(3, wanted.rounds)):
        uncached = _last_epoch("head", pictures, wanted, augmentation="light", epochs=2)
        cached = _last_epoch("head", pictures, wanted, augmentation="none", epochs=3)
        ratios.append(round(uncached["seconds"] / cached["seconds"], 1))
        log.info("cached / uncached: %.1f", ratios[-1])
    return statistics.median(ratios), ratios


class _Limit:
    """Forward, backward and step on one batch in memory, in the faster arithmetic of the two."""

    def __init__(self, wanted: argparse.Namespace) -> None:
        side, self.batch_size = wanted.size_px, wanted.batch_size
        channels_last = torch.channels_last
        network = build(wanted.network, CLASSES).train()
        spare_strided_depthwise(network)
        self.network = network.to(memory_format=channels_last)
        batch = torch.randn(self.batch_size, 3, side, side)
        self.batch = batch.contiguous(memory_format=channels_last)
        self.labels = torch.randint(CLASSES, (self.batch_size,))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        self.bf16 = False
        speeds = {}
        for self.bf16 in (False, True, False, True):
            self.step_s()
            speeds[self.bf16] = min(self.step_s() for _ in range(3))
        self.bf16 = speeds[True] < speeds[False]

    def step_s(self) -> float:
        """Return the seconds of one step."""
        began = time.monotonic()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = functional.cross_entropy(self.network(self.batch), self.labels)
        loss.backward()
        self.optimizer.step()
        return time.monotonic() - began


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

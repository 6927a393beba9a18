"""Batches of cached arrays in an order that a seed, a stage and an epoch fix."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from linnet.training.augmentation import Augment

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Wanted:
    """The rows of one batch, and the seed of all chance that goes into it."""

    rows: list[int]
    seed: int


class Batches(Dataset[Batch]):
    """Rows of an array with their labels, a whole batch at a time."""

    def __init__(
        self, inputs: NDArray[Any], labels: NDArray[np.int64], augment: Augment | None = None
    ) -> None:
        self.inputs = inputs
        self.labels = labels
        self.augment = augment

    def __getitem__(self, wanted: Wanted) -> Batch:
        """Return inputs, `[N, …]`, and labels, int64 `[N]` or probabilities `[N, classes]`."""
        inputs = torch.from_numpy(self.inputs[wanted.rows])
        labels = torch.from_numpy(self.labels[wanted.rows])
        if self.augment is None:
            return inputs, labels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(wanted.seed)
            return self.augment(inputs, labels)


class Order(Sampler[Wanted]):
    """The batches of an epoch; with a seed, shuffled anew for every epoch.

    A batch is the same whether this process or a worker makes it, and whether the run was
    interrupted before. Each of `ranks` processes gets its own share; shares of a shuffled epoch are
    equally many batches. A last batch of one picture is left out of a shuffled epoch, because
    batch normalisation can't train on it.

    With `balanced`, the rows' labels, a shuffled epoch is as long as without and has an equal
    share of every class: rare pictures come several times, of frequent ones a new part each time.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        seed: str | None,
        balanced: NDArray[np.int64] | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.balanced = balanced
        self.rank = rank
        self.ranks = ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        share = self._share()
        full, rest = divmod(share, self.batch_size)
        return full + (rest > 1 or (rest == 1 and (self.seed is None or not full)))

    def __iter__(self) -> Iterator[Wanted]:
        if self.seed is None:
            order = np.arange(self.rows)
        else:
            chance = np.random.default_rng(seed_of(self.seed, self.epoch))
            drawn = self.rows if self.balanced is None else equal_shares(self.balanced, chance)
            order = chance.permutation(drawn)
        mine = order[self.rank :: self.ranks][: self._share()]
        for batch in range(len(self)):
            rows = mine[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
            yield Wanted(rows, seed_of(self.seed, self.epoch, self.rank, batch))

    def _share(self) -> int:
        if self.seed is None:
            return len(range(self.rank, self.rows, self.ranks))
        return self.rows // self.ranks


def equal_shares(labels: NDArray[np.int64], chance: np.random.Generator) -> NDArray[np.int64]:
    """Return as many rows as there are labels, an equal share of each class.

    A class's rows are taken in turn, so that none comes twice before all have come once.
    """
    classes = chance.permutation(np.unique(labels))
    shares = np.array_split(np.arange(len(labels)), len(classes))
    return np.concatenate(
        [
            np.resize(chance.permutation(np.flatnonzero(labels == label)), len(share))
            for label, share in zip(classes, shares, strict=True)
        ]
    )


def loader(batches: Batches, order: Order, *, workers: int, pin: bool) -> DataLoader[Batch]:
    """Return a loader of whole batches; augmentation runs in its worker processes, if any.

    It has a generator of its own because it draws a number whenever an epoch begins, which would
    shift the network's dropout.
    """
    return DataLoader(
        batches,
        sampler=order,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )


def seed_of(*parts: object) -> int:
    """Return a seed below 2⁶³ that these parts always give and others hardly ever."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

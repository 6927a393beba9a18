"""The smallest task that trains in a second: noisy dark pictures against noisy bright ones."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TRAIN: dict[str, Any] = {
    "network": "test_resnet",
    "weights": "none",
    "normalisation": "dataset",
    "size_px": 32,
    "batch_size": 16,
    "head": "skip",
    "whole": {"epochs": 3, "lr": 0.003},
}


def write_shades(folder: Path, *, each: int) -> None:
    """Write so many pictures, 48 × 40, below `dark` and below `bright`."""
    random = np.random.default_rng(1)
    for label, level in (("dark", 60), ("bright", 190)):
        (folder / label).mkdir(parents=True)
        for number in range(each):
            pixels = random.normal(level, 25, (40, 48, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")

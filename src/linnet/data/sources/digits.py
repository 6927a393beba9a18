"""scikit-learn's 1,797 handwritten digits: real pictures with nothing to download."""

from pathlib import Path

import numpy as np
from PIL import Image

from linnet.data.sources.items import Item
from linnet.data.sources.scratch import filled
from linnet.errors import SourceError


def digits(scratch: Path) -> list[Item]:
    """Write the digits as 8×8 grey PNG files and return them, classes "0" to "9", no splits.

    Source: the test set of UCI's "Optical Recognition of Handwritten Digits".
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SourceError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install 'linnet[evaluate]'"
        ) from error

    data = load_digits()
    items = []
    with filled(scratch / "digits") as folder:
        for index, (grey, label) in enumerate(zip(data.images, data.target, strict=True)):
            key = f"{label}/{index:04d}.png"
            (folder / str(label)).mkdir(exist_ok=True)
            levels = np.round(grey * (255 / 16)).astype(np.uint8)
            Image.fromarray(levels).save(folder / key)
            items.append(Item(key, str(label), scratch / "digits" / key))
    return items

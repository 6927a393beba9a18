"""Named sets of augmentations, from torchvision's transforms.

| set | crop, share of the area | mirror | colour and more | batch |
| --- | --- | --- | --- | --- |
| none | – | no | – | – |
| light | 80–100 %, sides within 10 % | no | – | – |
| standard | 50–100 %, sides within a third | yes | brightness, contrast, saturation ± 20 % | – |
| strong | 30–100 %, sides within a third | yes | TrivialAugment, erasing in 1 of 4 | CutMix |

Pictures whose meaning changes in a mirror (digits, text, left and right in medicine) want `none`
or `light`. Everything draws from torch's global generator, so a seed fixes it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2

from linnet.settings import Augmentation

Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_CUTMIX_SHARE = 0.5


def augment(name: Augmentation, *, size_px: int, classes: int) -> Augment:
    """Return the named set as a function of a batch.

    It takes pictures, uint8 `[N, S, S, 3]`, and labels, int64 `[N]`, and returns new pictures of
    the same form; `strong` may return probabilities, float32 `[N, classes]`, in place of labels.
    """
    if name == "none":
        return _unchanged
    each = v2.Compose(_each(name, size_px))
    mix = v2.CutMix(num_classes=classes) if name == "strong" and classes > 1 else None

    def apply(pictures: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        changed = torch.empty_like(pictures)
        for source, target in zip(pictures, changed, strict=True):
            target.copy_(each(source.permute(2, 0, 1)).permute(1, 2, 0))
        if mix is not None and len(labels) > 1 and torch.rand(()) < _CUTMIX_SHARE:
            mixed, labels = mix(changed.permute(0, 3, 1, 2), labels)
            changed = mixed.permute(0, 2, 3, 1)
        return changed, labels

    return apply


def _each(name: Augmentation, size_px: int) -> list[torch.nn.Module]:
    """Return what happens to each picture by itself, uint8 `[3, S, S]`."""
    if name == "light":
        return [v2.RandomResizedCrop(size_px, scale=(0.8, 1.0), ratio=(0.9, 1.1))]
    if name == "standard":
        return [
            v2.RandomResizedCrop(size_px, scale=(0.5, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        ]
    return [
        v2.RandomResizedCrop(size_px, scale=(0.3, 1.0)),
        v2.RandomHorizontalFlip(),
        v2.TrivialAugmentWide(),
        v2.RandomErasing(p=0.25),
    ]


def _unchanged(pictures: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return pictures, labels

"""Named sets of augmentations, from torchvision's transforms.

| set | crop, share of the area | mirror | colour and more | batch |
| --- | --- | --- | --- | --- |
| none | – | no | – | – |
| light | 80–100 %, sides within 10 % | no | – | – |
| standard | 50–100 %, sides within a third | yes | brightness, contrast, saturation ± 20 % | – |
| strong | 30–100 %, sides within a third | yes | TrivialAugment, erasing in 1 of 4 | CutMix |

To each set RandAugment (two changes of a given strength), mixup and CutMix can be added; pictures
are mixed in every other batch, by one of the two.

Pictures whose meaning changes in a mirror (digits, text, left and right in medicine) want `none`
or `light`. Everything draws from torch's global generator, so a seed fixes it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2

from linnet.settings import Augmentation

Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_MIXED_SHARE = 0.5


def augment(
    name: Augmentation,
    *,
    size_px: int,
    classes: int,
    randaugment: int = 0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> Augment:
    """Return the named set, and what is added to it, as a function of a batch.

    It takes pictures, uint8 `[N, S, S, 3]`, and labels, int64 `[N]`, and returns new pictures of
    the same form; a mixed batch has probabilities, float32 `[N, classes]`, in place of labels.
    `randaugment` is a strength up to 30, `mixup` and `cutmix` are the alpha of their Beta
    distribution; 0 leaves each out.
    """
    changes = _each(name, size_px)
    if randaugment:
        changes.append(v2.RandAugment(magnitude=randaugment))
    each = v2.Compose(changes) if changes else None
    mixes = _mixes(mixup, cutmix or float(name == "strong"), classes)

    def apply(pictures: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if each is not None:
            changed = torch.empty_like(pictures)
            for source, target in zip(pictures, changed, strict=True):
                target.copy_(each(source.permute(2, 0, 1)).permute(1, 2, 0))
            pictures = changed
        if mixes and len(labels) > 1 and torch.rand(()) < _MIXED_SHARE:
            mix = mixes[int(torch.randint(len(mixes), ()))]
            mixed, labels = mix(pictures.permute(0, 3, 1, 2).float(), labels)
            pictures = mixed.permute(0, 2, 3, 1).round_().to(torch.uint8)
        return pictures, labels

    return apply


def _mixes(mixup: float, cutmix: float, classes: int) -> list[torch.nn.Module]:
    if classes < 2:
        return []
    mixes: list[torch.nn.Module] = []
    if mixup:
        mixes.append(v2.MixUp(alpha=mixup, num_classes=classes))
    if cutmix:
        mixes.append(v2.CutMix(alpha=cutmix, num_classes=classes))
    return mixes


def _each(name: Augmentation, size_px: int) -> list[torch.nn.Module]:
    """Return what happens to each picture by itself, uint8 `[3, S, S]`."""
    if name == "none":
        return []
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

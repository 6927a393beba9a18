"""What a stage makes small: cross-entropy, or one of its answers to rare classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from linnet.settings import TrainSettings


class Loss(nn.Module):
    """The mean loss of a batch of logits, float32 `[N, classes]`.

    Labels are int64 `[N]`, or probabilities `[N, classes]` where pictures were mixed.

    - `none` and `oversample`: cross-entropy.
    - `weighted`: each class counts by pictures / (classes × its own pictures) of the training
      split, and the mean is over those weights, as in `torch.nn.CrossEntropyLoss(weight=…)`.
    - `focal`: each class's term is multiplied by (1 − p)^γ (Lin et al. 2017, arXiv:1708.02002,
      without its α, which is what `weighted` does).
    """

    weights: Tensor

    def __init__(self, settings: TrainSettings, counts: Sequence[int]) -> None:
        super().__init__()
        self.imbalance = settings.imbalance
        self.gamma = settings.focal_gamma
        self.smoothing = settings.label_smoothing
        self.register_buffer("weights", class_weights(counts), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        if self.imbalance in ("none", "oversample"):
            return functional.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        wanted = self._wanted(labels)
        logs = functional.log_softmax(logits, dim=1)
        if self.imbalance == "weighted":
            wanted = wanted * self.weights
            return -(wanted * logs).sum() / wanted.sum()
        focus = (1 - logs.exp()).clamp(min=0) ** self.gamma
        return -(wanted * focus * logs).sum() / len(logits)

    def _wanted(self, labels: Tensor) -> Tensor:
        """Return the smoothed probabilities that the network should give, `[N, classes]`."""
        classes = len(self.weights)
        if labels.ndim == 1:
            labels = functional.one_hot(labels, classes)
        return labels.float() * (1 - self.smoothing) + self.smoothing / classes


def class_weights(counts: Sequence[int]) -> Tensor:
    """Return how much a picture of each class counts, so that all classes count the same."""
    pictures = torch.tensor(counts, dtype=torch.float32)
    return pictures.sum() / (len(counts) * pictures.clamp(min=1))

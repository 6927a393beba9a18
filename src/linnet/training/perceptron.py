"""A multilayer perceptron on pixels, under timm's name `mlp`: the baseline that sees no shapes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn


class Perceptron(nn.Module):
    """Hidden layers with ReLU over the flattened picture, and a linear classifier."""

    def __init__(
        self,
        hidden: Sequence[int] = (256, 64),
        *,
        img_size: int = 32,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        widths = [in_chans * img_size**2, *hidden]
        self.num_features = self.head_hidden_size = widths[-1]
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.ReLU()]
        self.layers = nn.Sequential(nn.Flatten(), *layers)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Begin a new classifier; there is nothing to pool."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return how timm finds the layers, first to last, for learning rates by layer."""
        return {"blocks": r"^layers\.(\d+)"}

    def forward_features(self, pictures: Tensor) -> Tensor:
        """Return the last hidden layer, `[N, features]`."""
        features: Tensor = self.layers(pictures)
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, `[N, classes]`, or what they are made of."""
        features = self.head_drop(features)
        return features if pre_logits else self.head(features)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits of normalised pictures, float32 `[N, 3, S, S]`."""
        return self.forward_head(self.forward_features(pictures))


default_cfgs = generate_default_cfgs(
    {"mlp": {"classifier": "head", "input_size": (3, 32, 32), "fixed_input_size": True}}
)


@register_model
def mlp(pretrained: bool = False, **options: Any) -> nn.Module:
    """Return the perceptron; timm calls it."""
    network: nn.Module = build_model_with_cfg(Perceptron, "mlp", pretrained, **options)
    return network

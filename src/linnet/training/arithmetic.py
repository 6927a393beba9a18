"""Which arithmetic a training computes in, and where it had better compute otherwise."""

from typing import Literal

import torch
from torch import Tensor, nn

from linnet.errors import TrainingError
from linnet.settings import TrainSettings

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

# Below this side the casts cost more than bf16 saves on a CPU.
_SMALLEST_BF16_PX = 64


def precision(settings: TrainSettings, *, on_gpu: bool) -> Precision:
    """Return Lightning's name of the arithmetic to use.

    `auto` is bf16 where the hardware computes in it, except for very small pictures on a CPU,
    where the casts cost more than they save.

    Raises:
        TrainingError: 16 on a CPU.
    """
    if settings.precision == "16" and not on_gpu:
        raise TrainingError(
            "train.precision 16 needs a GPU: use bf16, or auto, which picks what the CPU has"
        )
    if settings.precision != "auto":
        names: dict[str, Precision] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
        return names[settings.precision]
    if on_gpu:
        return "bf16-mixed" if torch.cuda.is_bf16_supported(False) else "16-mixed"
    worth_it = settings.size_px >= _SMALLEST_BF16_PX
    return "bf16-mixed" if worth_it and cpu_computes_bf16() else "32-true"


def cpu_computes_bf16() -> bool:
    """Return whether this CPU multiplies bf16 itself (AVX512-BF16, AMX, or Arm's BF16)."""
    capability = torch.cpu.get_capabilities()
    names = ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")
    return any(capability.get(name, False) for name in names)


class LearntInFloat32(nn.Conv2d):
    """A convolution that leaves autocast where a gradient will go through it."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `[N, C, H, W]`, in the input's type."""
        if not input.requires_grad:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float()).to(input.dtype)


def spare_strided_depthwise(network: nn.Module) -> None:
    """Let a network's strided depthwise convolutions learn in float32, under the same names.

    On a CPU the gradient of their input takes four times as long in bf16 as in float32 (oneDNN),
    a third of MobileNetV2's step; all other layers are faster in bf16.
    """
    for layer in network.modules():
        if type(layer) is not nn.Conv2d:
            continue
        if layer.groups == layer.in_channels > 1 and max(layer.stride) > 1:
            layer.__class__ = LearntInFloat32

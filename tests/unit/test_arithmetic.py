import torch
from torch import nn

from linnet.training.arithmetic import LearntInFloat32, spare_strided_depthwise
from linnet.training.network import build


def test_only_strided_depthwise_convolutions_are_spared_under_their_own_names() -> None:
    network = build("mobilenetv2_035", 3)
    names = list(network.state_dict())
    spare_strided_depthwise(network)
    spared = {n for n, layer in network.named_modules() if isinstance(layer, LearntInFloat32)}
    assert spared == {f"blocks.{block}.0.conv_dw" for block in (1, 2, 3, 5)}
    assert list(network.state_dict()) == names


def test_a_spared_convolution_learns_as_in_float32_and_answers_in_the_type_it_is_asked_in() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8))
    pictures = torch.randn(2, 8, 9, 9, dtype=torch.bfloat16)
    expected = gradient(network, pictures.float())
    spare_strided_depthwise(network)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradient(network, pictures)
        assert network(pictures).dtype == torch.bfloat16
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())


def gradient(network: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    asked = pictures.clone().requires_grad_()
    network(asked).sum().backward()
    assert asked.grad is not None
    return asked.grad

from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from linnet.errors import CheckpointError, NetworkError
from linnet.training.network import (
    Classifier,
    build,
    find_head,
    load_checkpoint,
    normalisation,
    pooled_features,
)

HALF = (0.5, 0.5, 0.5)


def test_an_unknown_network_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(NetworkError, match=r"'mobilenet_v2_100'.*mobilenetv2_100"):
        build("mobilenet_v2_100", 3)


def test_a_network_of_another_hub_is_not_one_of_timms() -> None:
    with pytest.raises(NetworkError, match="not one of timm's"):
        build("hf-hub:somebody/something", 3)


def test_an_unreachable_hub_is_an_error_that_says_what_else_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NetworkError, match=r"can't be had from timm's hub.*\.safetensors.*s3://"):
        build("test_resnet", 3, weights="hub")


def test_a_network_that_the_hub_has_no_weights_for_is_an_error_before_any_request() -> None:
    with pytest.raises(NetworkError, match="no pretrained weights for test_mambaout"):
        build("test_mambaout", 3, weights="hub")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file_fill_all_but_a_new_classifier(tmp_path: Path, suffix: str) -> None:
    pretrained = build("test_resnet", 7).state_dict()
    path = saved(pretrained, tmp_path / f"weights{suffix}")
    network = build("test_resnet", 3, weights=path)
    for name, tensor in network.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(tensor, pretrained[name]), name


def test_a_classifier_of_the_same_shape_is_taken_too(tmp_path: Path) -> None:
    pretrained = build("test_resnet", 3).state_dict()
    network = build("test_resnet", 3, weights=saved(pretrained, tmp_path / "w.safetensors"))
    assert torch.equal(network.state_dict()["fc.weight"], pretrained["fc.weight"])


def test_a_vision_transformers_positions_are_fitted_to_another_size(tmp_path: Path) -> None:
    path = saved(build("test_vit", 5, size_px=160).state_dict(), tmp_path / "w.safetensors")
    network = build("test_vit", 5, weights=path, size_px=64)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_weights_of_another_network_are_refused_with_the_first_tensors(tmp_path: Path) -> None:
    path = saved(build("test_efficientnet", 3).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(NetworkError, match=r"don't fit test_resnet: missing .* and \d+ more"):
        build("test_resnet", 3, weights=path)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    tensors = build("test_resnet", 3).state_dict()
    tensors["conv1.0.weight"] = torch.zeros(1, 2)
    path = saved(tensors, tmp_path / "w.safetensors")
    with pytest.raises(NetworkError, match=r"conv1\.0\.weight is 1 × 2, expected \d+ × 3"):
        build("test_resnet", 3, weights=path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_that_holds_no_tensors_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("not weights at all")
    with pytest.raises(NetworkError, match="can't be read"):
        build("test_resnet", 3, weights=path)


def test_an_absent_weights_file_is_an_error_with_the_kinds_there_are(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="is not a file: expected hub, none"):
        build("test_resnet", 3, weights=tmp_path / "nothing.pth")


def test_pictures_are_normalised_by_mean_and_standard_deviation() -> None:
    model = Classifier(torch.nn.Identity(), (0.0, 0.5, 1.0), (1.0, 0.5, 0.25))
    pictures = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    out = model.normalise(pictures)
    assert out.shape == (1, 3, 2, 2)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([1.0, 1.0, 0.0]))


def test_the_networks_own_normalisation_is_what_it_was_pretrained_with() -> None:
    assert normalisation("mobilenetv2_100") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_the_head_of_pooled_features_gives_the_networks_logits(name: str) -> None:
    network = build(name, 4, size_px=64).eval()
    head = find_head(Classifier(network, HALF, HALF), 64)
    assert head is not None
    pictures = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(
            head.layer(pooled_features(network, pictures)), network(pictures)
        )


def test_a_network_with_two_classifiers_has_no_single_head() -> None:
    network = build("deit_tiny_distilled_patch16_224", 4, size_px=32)
    assert find_head(Classifier(network, HALF, HALF), 32) is None


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model\.json"):
        load_checkpoint(tmp_path)


def saved(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("network", ["mobilenetv2_100", "resnet18", "test_vit"])
def test_a_new_classifier_begins_undecided(network: str) -> None:
    built = build(network, 2).eval()
    features = torch.full((4, built.num_features), 1.0)
    logits = built.get_classifier()(features)
    assert logits.abs().max() < 2
    assert not built.get_classifier().bias.any()

import json
from typing import Any

import pytest

from linnet.errors import SettingsError
from linnet.search_space import Choices, Range, most_epochs, read_space, settings_of
from linnet.settings import RunSettings, SearchSettings, TrainSettings

BASE = TrainSettings.parse({"head": "skip", "whole": {"epochs": 6}})


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"batchsize": [8]}, "batchsize: no such setting; did you mean 'batch_size'?"),
        ({"whole": {"lrr": [1]}}, "whole.lrr: no such setting; did you mean 'lr'?"),
        ({"whole.lr": {"low": 1, "high": 1}}, "whole.lr: empty range: low (1) must be below"),
        ({"whole.lr": {"low": 2, "high": 1}}, "whole.lr: empty range"),
        ({"whole.lr": []}, "whole.lr: empty range: expected a list of at least one"),
        ({"whole.lr": {"low": 0, "high": 1, "log": True}}, "whole.lr: log needs a low above 0"),
        ({"whole.lr": {"low": 1, "high": 2, "logs": True}}, "did you mean 'log'?"),
        ({"whole.lr": {"low": 1}}, "whole.lr: high: Field required"),
        ({"whole.lr": 3}, "whole.lr: expected a list of choices, or {low, high}"),
        ({"whole.lr": {"low": -1, "high": 1}}, "greater than 0"),
        ({"whole.optimizer": {"low": 1, "high": 2}}, "whole.optimizer"),
        ({"size_px": {"low": 4, "high": 64}}, "greater than or equal to 8"),
        ({"size_px": {"low": 8, "high": 64, "step": 0.5}}, "must be whole"),
        ({"size_px": {"low": 8, "high": 64, "step": 100}}, "wider than the range"),
        ({"precision": ["32", "8"]}, "'auto', '32', 'bf16' or '16' (got '8')"),
        ({"head.lr": [0.1]}, "head.lr: train.head is skip"),
        ({"head": ["skip"], "head.lr": [0.1]}, "head.lr: train.head is skip"),
        ({"monitor": ["val_loss"]}, "what trials are compared by"),
        ({"network.name": ["a"]}, "network.name: no such setting"),
        ({"together": [3]}, "expected mappings of settings (got 3)"),
        ({"together": [{"netwrok": "a"}]}, "did you mean 'network'?"),
    ],
)
def test_a_wrong_space_is_named_with_what_was_expected(space: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_space(space, BASE)
    assert words in str(caught.value)


def test_all_wrong_dimensions_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        read_space({"batchsize": [8], "whole.lr": [], "sede": [1]}, BASE)
    assert len(str(caught.value).splitlines()) == 4


def test_a_run_with_a_wrong_space_is_refused_as_a_whole() -> None:
    with pytest.raises(SettingsError, match="did you mean 'batch_size'"):
        RunSettings.parse({"search": {"space": {"batchsize": [8]}}})


def test_dotted_and_nested_names_mean_the_same() -> None:
    dotted = read_space({"whole.lr": {"low": 1e-4, "high": 1e-2, "log": True}}, BASE)
    nested = read_space({"whole": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}}, BASE)
    assert dotted == nested == {"whole.lr": Range(1e-4, 1e-2, log=True, step=None, whole=False)}


def test_whole_numbers_stay_whole_after_a_way_through_json() -> None:
    space = read_space({"size_px": {"low": 32.0, "high": 64.0}, "batch_size": [8.0, 16.0]}, BASE)
    assert space["size_px"] == Range(32, 64, log=False, step=None, whole=True)
    assert space["batch_size"] == Choices((8, 16))


def test_choices_may_be_whole_stages_and_come_before_what_lies_below_them() -> None:
    space = read_space({"head.lr": [0.1, 0.2], "head": ["skip", {"epochs": 2}]}, BASE)
    assert list(space) == ["head", "head.lr"]
    settings = settings_of(BASE, {"head": {"epochs": 2}, "head.lr": 0.2})
    assert settings.head is not None
    assert (settings.head.epochs, settings.head.lr) == (2, 0.2)
    assert settings_of(BASE, {"head": "skip", "head.lr": 0.2}).head is None


def test_settings_of_a_group_are_set_together() -> None:
    group = {"network": "resnet18", "whole.epochs": 3}
    space = read_space({"together": [group, {"network": "resnet34"}]}, BASE)
    assert isinstance(space["together"], Choices)
    settings = settings_of(BASE, {"together": group})
    assert settings.network == "resnet18"
    assert settings.whole is not None
    assert settings.whole.epochs == 3


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (
            [{"batch_size": 32, "network": "resnet18"}, {"batch_size": 32, "network": "mlp"}],
            ["resnet18", "mlp"],
        ),
        ([{"weights": "s3://bucket/old.pth"}, {"weights": "new.pth"}], ["old.pth", "new.pth"]),
        ([{"weights": "/a/one.pth"}, {"weights": "/b/one.pth"}], ["/a/one.pth", "/b/one.pth"]),
        ([{"weights": "none"}, {"weights": "/one.pth"}], ["weights none", "one.pth"]),
        (
            [
                {"network": "mlp", "hidden": [24, 8]},
                {"network": "mlp", "hidden": [64]},
                {"network": "resnet18"},
            ],
            ["mlp, hidden [24, 8]", "mlp, hidden [64]", "resnet18"],
        ),
        (
            [{"batch_size": b, "seed": s, "dropout": 0} for b, s in ((8, 1), (8, 2), (16, 2))],
            ["batch_size 8, seed 1", "batch_size 8, seed 2", "batch_size 16, seed 2"],
        ),
        ([{"network": "mlp"}, {"network": "mlp", "seed": 1}], ["as in train", "seed 1"]),
    ],
)
def test_groups_of_settings_are_named_by_what_sets_them_apart(
    groups: list[dict[str, Any]], words: list[str]
) -> None:
    base = TrainSettings.parse({"network": "resnet18", "weights": "none"})
    together = read_space({"together": groups}, base)["together"]
    assert isinstance(together, Choices)
    labels = [json.dumps(group, sort_keys=True) for group in groups]
    assert together.words == dict(zip(labels, words, strict=True))


def test_stages_are_named_beside_one_that_is_skipped() -> None:
    space = read_space({"head": ["skip", {"epochs": 2}], "whole": [{"lr": 0.1}, {"lr": 0.2}]}, BASE)
    head, whole = space["head"], space["whole"]
    assert isinstance(head, Choices)
    assert isinstance(whole, Choices)
    assert list(head.words.values()) == ["settings"]
    assert list(whole.words.values()) == ["lr 0.1", "lr 0.2"]


def test_the_longest_trial_is_known_beforehand() -> None:
    space = read_space(
        {"head": ["skip", {"epochs": 2}], "whole.epochs": {"low": 3, "high": 9}}, BASE
    )
    assert most_epochs(BASE, space) == 11
    assert most_epochs(BASE, {}) == 6


def test_no_space_is_no_search() -> None:
    assert SearchSettings().space == {}
    assert RunSettings.parse({}).search.trials == 20

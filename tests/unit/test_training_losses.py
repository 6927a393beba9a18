import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from linnet.settings import TrainSettings
from linnet.training.loading import Order, equal_shares
from linnet.training.losses import Loss, class_weights

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.0, 3.0], [1.0, -2.0, 0.3], [0.2, 0.1, 0.0]])
LABELS = torch.tensor([0, 1, 2, 0])
COUNTS = [6, 3, 1]


def loss(**changes: object) -> Loss:
    return Loss(TrainSettings.parse(changes), COUNTS)


@pytest.mark.parametrize("imbalance", ["none", "oversample"])
def test_without_weights_it_is_cross_entropy(imbalance: str) -> None:
    wanted = functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    torch.testing.assert_close(
        loss(imbalance=imbalance, label_smoothing=0.1)(LOGITS, LABELS), wanted
    )


def test_a_class_weighs_as_much_as_every_other() -> None:
    torch.testing.assert_close(class_weights(COUNTS), torch.tensor([10 / 18, 10 / 9, 10 / 3]))
    weighted = class_weights(COUNTS) * torch.tensor(COUNTS)
    torch.testing.assert_close(weighted, torch.full((3,), 10 / 3))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_is_torchs(smoothing: float) -> None:
    ours = loss(imbalance="weighted", label_smoothing=smoothing)(LOGITS, LABELS)
    wanted = functional.cross_entropy(LOGITS, LABELS, weight=class_weights(COUNTS))
    if smoothing == 0:
        torch.testing.assert_close(ours, wanted)
    else:
        assert ours != wanted


def test_a_weighted_loss_by_hand_of_mixed_labels() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    mixed = torch.tensor([[0.75, 0.25, 0.0]])
    first, second = 0.75 * 10 / 18, 0.25 * 10 / 9
    wanted = (first * math.log(2) + second * math.log(4)) / (first + second)
    assert float(loss(imbalance="weighted")(logits, mixed)) == pytest.approx(wanted)


def test_the_focal_loss_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.9, 0.05, 0.05], [0.2, 0.5, 0.3]]))
    wanted = (-(0.1**2) * math.log(0.9) - (0.8**2) * math.log(0.2)) / 2
    ours = loss(imbalance="focal", focal_gamma=2)(logits, torch.tensor([0, 0]))
    assert float(ours) == pytest.approx(wanted)


def test_the_focal_loss_of_gamma_0_is_cross_entropy() -> None:
    ours = loss(imbalance="focal", focal_gamma=0, label_smoothing=0.1)(LOGITS, LABELS)
    wanted = functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    torch.testing.assert_close(ours, wanted)


def test_the_focal_loss_of_a_sure_prediction_has_a_gradient() -> None:
    logits = torch.tensor([[100.0, -100.0, 0.0]], requires_grad=True)
    loss(imbalance="focal", focal_gamma=0.5)(logits, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_an_oversampled_epoch_has_an_equal_share_of_every_class() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2])
    order = Order(len(labels), 10, seed="s", balanced=labels)
    epochs = []
    for epoch in (0, 1, 0):
        order.set_epoch(epoch)
        epochs.append([row for wanted in order for row in wanted.rows])
    assert epochs[0] == epochs[2] != epochs[1]
    assert sorted(np.bincount(labels[epochs[0]])) == [33, 33, 34]


def test_no_picture_comes_twice_before_all_of_its_class_have_come_once() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2])
    rows = equal_shares(labels, np.random.default_rng(0))
    counts = np.bincount(rows, minlength=len(labels))
    assert counts[:90].max() == 1
    assert set(counts[90:99]) <= {3, 4}
    assert counts[99] in (33, 34)

import pytest
import torch

from linnet.errors import TrainingError
from linnet.settings import Augmentation, StageSettings, TrainSettings
from linnet.training.arithmetic import precision
from linnet.training.augmentation import augment
from linnet.training.loading import Batches, Order, Wanted, seed_of

SETS: tuple[Augmentation, ...] = ("none", "light", "standard", "strong")


@pytest.mark.parametrize("name", SETS)
def test_augmented_pictures_keep_their_form(name: Augmentation) -> None:
    pictures, labels = some_pictures(8)
    for _ in range(5):
        changed, _ = augment(name, size_px=32, classes=3)(pictures, labels)
        assert changed.shape == pictures.shape
        assert changed.dtype == torch.uint8


@pytest.mark.parametrize("name", SETS[1:])
def test_each_picture_of_a_batch_is_changed_in_its_own_way(name: Augmentation) -> None:
    torch.manual_seed(0)
    same = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8).expand(4, -1, -1, -1)
    changed, _ = augment(name, size_px=32, classes=1)(same.contiguous(), torch.zeros(4))
    assert len({picture.numpy().tobytes() for picture in changed}) == 4


def test_light_never_mirrors() -> None:
    torch.manual_seed(0)
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).view(1, 1, 32, 1).expand(64, 32, 32, 3)
    changed, _ = augment("light", size_px=32, classes=2)(ramp.contiguous(), torch.zeros(64))
    assert (changed[:, :, -1].float().mean((1, 2)) > changed[:, :, 0].float().mean((1, 2))).all()


def test_strong_mixes_pictures_and_their_labels_in_the_same_share() -> None:
    pictures, labels = some_pictures(8)
    shapes = set()
    for seed in range(10):
        torch.manual_seed(seed)
        _, mixed = augment("strong", size_px=32, classes=3)(pictures, labels)
        shapes.add(tuple(mixed.shape))
        if mixed.ndim == 2:
            torch.testing.assert_close(mixed.sum(1), torch.ones(8))
    assert shapes == {(8,), (8, 3)}


def test_a_batch_depends_on_its_seed_and_leaves_other_chance_alone() -> None:
    pictures, labels = some_pictures(6)
    batches = Batches(pictures.numpy(), labels.numpy(), augment("strong", size_px=32, classes=3))
    first, _ = batches[Wanted([0, 1, 2], 7)]
    before = torch.random.get_rng_state()
    again, _ = batches[Wanted([0, 1, 2], 7)]
    other, _ = batches[Wanted([0, 1, 2], 8)]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    order = Order(10, 4, seed="s")
    epochs = []
    for epoch in (0, 1, 0):
        order.set_epoch(epoch)
        epochs.append([row for wanted in order for row in wanted.rows])
    assert sorted(epochs[0]) == list(range(10))
    assert epochs[0] == epochs[2] != epochs[1]


def test_validation_is_in_order_and_whole() -> None:
    assert [wanted.rows for wanted in Order(5, 2, seed=None)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(("rows", "sizes"), [(9, [4, 4]), (10, [4, 4, 2]), (1, [1]), (8, [4, 4])])
def test_a_last_batch_of_one_is_left_out_of_training(rows: int, sizes: list[int]) -> None:
    order = Order(rows, 4, seed="s")
    assert [len(wanted.rows) for wanted in order] == sizes
    assert len(order) == len(sizes)


def test_ranks_share_an_epoch_in_equally_many_batches() -> None:
    shares = [[w.rows for w in Order(11, 2, seed="s", rank=r, ranks=2)] for r in (0, 1)]
    assert len(shares[0]) == len(shares[1])
    rows = [row for share in shares for batch in share for row in batch]
    assert len(rows) == len(set(rows))


def test_a_seed_is_the_same_everywhere_and_differs_by_part() -> None:
    assert seed_of(42, "head", 1) == seed_of(42, "head", 1)
    assert len({seed_of(42, name, n) for name in ("head", "whole") for n in range(50)}) == 100


def test_small_pictures_are_computed_in_fp32_by_a_cpu() -> None:
    assert precision(TrainSettings(size_px=32), on_gpu=False) == "32-true"


def test_half_precision_on_a_cpu_is_an_error_that_names_bf16() -> None:
    with pytest.raises(TrainingError, match="needs a GPU: use bf16"):
        precision(TrainSettings(precision="16"), on_gpu=False)


def some_pictures(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return pictures, torch.arange(count) % 3


@pytest.mark.parametrize("added", [{"randaugment": 15}, {"mixup": 0.4}, {"cutmix": 1.0}])
def test_what_is_added_to_a_set_keeps_the_pictures_form(added: dict[str, float]) -> None:
    pictures, labels = some_pictures(8)
    changes, shapes = 0, set()
    for seed in range(12):
        torch.manual_seed(seed)
        changed, mixed = augment("none", size_px=32, classes=3, **added)(pictures, labels)
        assert changed.shape == pictures.shape
        assert changed.dtype == torch.uint8
        changes += not torch.equal(changed, pictures)
        shapes.add(tuple(mixed.shape))
    assert changes > 2
    assert shapes == ({(8,)} if "randaugment" in added else {(8,), (8, 3)})


def test_a_stage_that_changes_its_pictures_says_so() -> None:
    assert not StageSettings().augments
    assert StageSettings(mixup=0.2).augments
    assert StageSettings(augmentation="light").augments

"""Near duplicates: found when they are the same picture, and only then."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from linnet.data.duplicates import NEAR_BITS, NearPair, clusters, fingerprint, near_pairs
from linnet.data.pictures import decode
from tests.pictures import encoded, photograph

SAME: dict[str, Callable[[Image.Image], Image.Image]] = {
    "again": lambda p: p.copy(),
    "jpeg quality 40": lambda p: decode(encoded(p, quality=40)),
    "half the size": lambda p: p.resize((p.width // 2, p.height // 2), Image.Resampling.LANCZOS),
    "twice the size": lambda p: p.resize((p.width * 2, p.height * 2), Image.Resampling.BICUBIC),
    "grey": lambda p: p.convert("L").convert("RGB"),
    "darker": lambda p: ImageEnhance.Brightness(p).enhance(0.85),
    "more contrast": lambda p: ImageEnhance.Contrast(p).enhance(1.1),
}


def bits(first: Image.Image, second: Image.Image) -> int:
    one, other = fingerprint(first), fingerprint(second)
    assert one is not None
    assert other is not None
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()


@pytest.mark.parametrize("change", SAME.values(), ids=list(SAME))
def test_the_same_picture_changed_a_little_is_near(change: Callable[[Image.Image], Image.Image]):
    for seed in range(5):
        photo = photograph(seed, 200, 150)
        assert bits(photo, change(photo)) <= NEAR_BITS


def test_different_pictures_are_far() -> None:
    prints = [fingerprint(photograph(seed)) for seed in range(200)]
    assert near_pairs(prints) == []


def test_mirrored_and_turned_pictures_are_others() -> None:
    photo = photograph(0)
    assert bits(photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) > 80
    assert bits(photo, photo.transpose(Image.Transpose.ROTATE_180)) > 80


def test_tiny_and_plain_pictures_have_no_fingerprint() -> None:
    assert fingerprint(photograph(0, 31, 200)) is None
    assert fingerprint(Image.new("RGB", (200, 200), "grey")) is None


def random_prints(count: int, seed: int = 0) -> list[bytes]:
    random = np.random.default_rng(seed)
    return [random.bytes(32) for _ in range(count)]


def flipped(print_: bytes, count: int, seed: int = 0) -> bytes:
    random = np.random.default_rng(seed)
    number = int.from_bytes(print_)
    for bit in random.choice(256, count, replace=False):
        number ^= 1 << int(bit)
    return number.to_bytes(32)


def test_pairs_are_found_among_many() -> None:
    prints: list[bytes | None] = [*random_prints(3000), None]
    prints += [flipped(prints[i] or b"", 12, i) for i in range(100)]
    found = near_pairs(prints)
    assert found == [NearPair(i, 3001 + i, 12) for i in range(100)]


def test_pairs_beyond_the_limit_are_not_near() -> None:
    first = random_prints(1)[0]
    assert near_pairs([first, flipped(first, NEAR_BITS + 1)]) == []


@pytest.mark.parametrize("prints", [[], [None, None], [b"\0" * 32]])
def test_nothing_to_compare_gives_no_pairs(prints: list[bytes | None]) -> None:
    assert near_pairs(prints) == []


def test_a_thousand_equal_fingerprints_do_not_take_quadratic_time() -> None:
    prints = [b"\x5a" * 32] * 1000
    pairs = near_pairs(prints)
    assert len(pairs) <= 1000 * 32
    assert set(clusters(1000, ((p.first, p.second) for p in pairs))) == {0}


def test_links_join_into_clusters_named_by_their_first() -> None:
    assert clusters(7, [(5, 6), (1, 3), (3, 5)]) == [0, 1, 2, 1, 4, 1, 1]

from typing import Any

import numpy as np
import pytest

from linnet.errors import SettingsError
from linnet.monitoring.comparison import Shift, compare
from linnet.monitoring.features import FEATURES, Sample
from linnet.monitoring.settings import DriftSettings

CLASSES = ("a", "b", "c", "d")
HOW: dict[str, Any] = {"false_alarms": 0.01, "smallest_shift": 0.1, "permutations": 199, "seed": 1}


def _sample(random: np.random.Generator, pictures: int, *, rare: float = 0.02) -> Sample:
    """Return pictures whose numbers depend on each other; some are whole, one never changes."""
    shared = random.normal(size=(pictures, 1))
    values = shared + random.normal(size=(pictures, len(FEATURES)))
    values[:, 1] = values[:, 0]
    values[:, 2] = values[:, 2].round()
    values[:, 3] = 7.0
    answers = random.choice(4, pictures, p=[0.5, 0.3, 0.2 - rare, rare])
    return Sample(values, answers)


def _drifted(shifts: tuple[Shift, ...]) -> set[str]:
    return {shift.name for shift in shifts if shift.drifted}


@pytest.mark.parametrize(("reference", "now"), [(200, 60), (60, 200)])
def test_without_drift_looks_alarm_as_often_as_promised(reference: int, now: int) -> None:
    random = np.random.default_rng(5)
    how = {**HOW, "false_alarms": 0.2, "smallest_shift": 0.0, "permutations": 99}
    looks, alarms = 200, 0
    for seed in range(looks):
        before, after = _sample(random, reference), _sample(random, now)
        alarms += bool(_drifted(compare(before, after, CLASSES, **{**how, "seed": seed})))
    # Three standard deviations of 200 looks at 0.2 are 0.085.
    assert 0.115 < alarms / looks < 0.285


def test_a_shift_of_one_number_is_found_and_named() -> None:
    random = np.random.default_rng(6)
    before, now = _sample(random, 500), _sample(random, 200)
    now.values[:, 5] += 1.0
    shifts = compare(before, now, CLASSES, **HOW)
    assert _drifted(shifts) == {FEATURES[5]}
    found = next(shift for shift in shifts if shift.name == FEATURES[5])
    assert found.chance == 1 / 200
    assert found.now - found.before == pytest.approx(1.0, abs=0.3)
    assert 0.2 < found.distance < 0.5


def test_a_shift_of_the_answers_is_found_by_class() -> None:
    random = np.random.default_rng(7)
    before, now = _sample(random, 500), _sample(random, 200)
    now.answers[:60] = 3
    shifts = {shift.name: shift for shift in compare(before, now, CLASSES, **HOW)}
    assert shifts["d"].drifted
    assert shifts["d"].kind == "answers"
    assert shifts["d"].distance == pytest.approx(shifts["d"].now - shifts["d"].before)


def test_a_certain_but_small_shift_is_not_minded() -> None:
    random = np.random.default_rng(8)
    before, now = _sample(random, 4000), _sample(random, 4000)
    now.values[:, 5] += 0.2
    (shift,) = (one for one in compare(before, now, CLASSES, **HOW) if one.name == FEATURES[5])
    assert shift.chance <= 0.01
    assert shift.distance < 0.1
    assert not shift.drifted
    minded = compare(before, now, CLASSES, **{**HOW, "smallest_shift": 0.02})
    assert FEATURES[5] in _drifted(minded)


def test_the_same_seed_gives_the_same_answer() -> None:
    random = np.random.default_rng(9)
    before, now = _sample(random, 100), _sample(random, 100)
    assert compare(before, now, CLASSES, **HOW) == compare(before, now, CLASSES, **HOW)


def test_a_rate_that_the_permutations_can_not_show_is_refused() -> None:
    with pytest.raises(SettingsError, match="set permutations to 9999 or more"):
        DriftSettings.parse({"false_alarms": 0.0001})
    DriftSettings.parse({"false_alarms": 0.0001, "permutations": 9999})

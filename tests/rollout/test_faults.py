"""The faults that tests on a cluster put into servers: Python starts as well without one."""

import numpy as np
import pytest

from linnet.inference.answers import Rule
from linnet.inference.rest import Rest
from tests.cluster.faulty.linnet_faults import _spoil


@pytest.fixture(autouse=True)
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo each fault after its test."""
    monkeypatch.setattr(Rest, "_infer", Rest._infer)
    monkeypatch.setattr(Rule, "answer", Rule.answer)


@pytest.mark.parametrize("fault", ["errors", "slow"])
def test_a_fault_gets_between_the_server_and_its_requests(fault: str) -> None:
    before = Rest._infer
    _spoil(fault)
    assert Rest._infer is not before


def test_a_wrong_server_names_another_class() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1]], np.float32)
    _spoil("wrong")
    assert list(Rule().answer(probabilities).best) == [1]

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from linnet.errors import TriggerError
from linnet.stores.connections import Connections
from linnet.triggers import ledger as ledgers
from linnet.triggers.ledger import Ledger, State, Trigger
from tests.pipelines.kubeflow_stand_in import StandIn
from tests.triggers.conftest import runs


def _trigger(key: str) -> Trigger:
    return Trigger("shades", "dataset", key, "ada", "new pictures")


def _ten_at_once(settings: Path, workspace: Path, keys: list[str]) -> list[dict[str, Any]]:
    """Return what became of a trigger for each key, all fired in the same moment."""
    go = workspace.with_name("go")
    command = [sys.executable, "-m", "tests.triggers.firing", str(settings), str(workspace)]
    processes = [
        subprocess.Popen([*command, key, str(go)], stdout=subprocess.PIPE, text=True)
        for key in keys
    ]
    outputs = [process.stdout for process in processes]
    try:
        assert all(output is not None and output.readline() == "ready\n" for output in outputs)
        go.touch()
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads(words) for words in said]


def test_the_same_trigger_ten_times_at_once_starts_one_run(
    settings: Callable[..., Path],
    kubeflow: StandIn,
    workspace: Path,
    connections: Connections,
) -> None:
    file = settings(cluster={"endpoint": kubeflow.url}, overrides=["source.uri=digits"])
    outcomes = _ten_at_once(file, workspace, ["same"] * 10)
    assert Counter(one["outcome"] for one in outcomes) == {"started": 1, "duplicate": 9}
    assert {one["number"] for one in outcomes} == {1}
    assert len(runs(kubeflow)) == 1
    assert [entry.state for entry in Ledger("shades", connections).entries()] == ["started"]


def test_another_trigger_right_after_one_is_too_soon(
    connections: Connections,
) -> None:
    ledger = Ledger("shades", connections)
    first = ledger.claim(_trigger("a"), at_least_s=60)
    assert (first.outcome, first.number) == ("claimed", 1)
    second = ledger.claim(_trigger("b"), at_least_s=60)
    assert second.outcome == "too soon"
    assert "not before" in second.words
    assert ledger.claim(_trigger("b"), at_least_s=0).number == 2


def test_an_entry_that_another_process_took_in_between_is_looked_at_again(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list was empty when it was read; by the time of appending, the other one was there."""
    ledger, other = Ledger("shades", connections), Ledger("shades", connections)
    read = ledger.entries
    lists = iter([[]])

    def late() -> Any:
        known = next(lists, None)
        if known is None:
            return read()
        other.claim(_trigger("same"), at_least_s=0)
        return known

    monkeypatch.setattr(ledger, "entries", late)
    assert ledger.claim(_trigger("same"), at_least_s=0).outcome == "duplicate"
    assert len(read()) == 1


@pytest.mark.parametrize(
    ("state", "again"),
    [
        ("started", "duplicate"),
        ("released", "duplicate"),
        ("refused", "duplicate"),
        ("failed", "duplicate"),
        ("not started", "claimed"),
        ("interrupted", "claimed"),
    ],
)
def test_only_what_started_nothing_may_be_tried_again(
    state: State, again: str, connections: Connections
) -> None:
    ledger = Ledger("shades", connections)
    ledger.note(ledger.claim(_trigger("a"), at_least_s=60).number, state, run="r", words="w")
    assert ledger.claim(_trigger("a"), at_least_s=60).outcome == again
    entry = ledger.entries()[0]
    assert (entry.state, entry.run, entry.words) == (state, "r", "w")


def test_a_claim_whose_process_died_is_free_after_a_while(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger("shades", connections)
    ledger.claim(_trigger("a"), at_least_s=0)
    assert ledger.claim(_trigger("a"), at_least_s=0).outcome == "duplicate"
    monkeypatch.setattr(ledgers, "CLAIM_S", 0.01)
    time.sleep(0.02)
    assert ledger.claim(_trigger("a"), at_least_s=3600).number == 2


def test_a_clock_that_is_ahead_holds_up_no_longer_than_the_setting(
    connections: Connections,
) -> None:
    ledger = Ledger("shades", connections)
    ledger.claim(_trigger("a"), at_least_s=0)
    (file,) = Path(ledger.uri).glob("*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "at": time.time() + 86_400}))
    words = ledger.claim(_trigger("b"), at_least_s=60).words
    assert "not before 60 s" in words


def test_a_damaged_entry_is_named(connections: Connections) -> None:
    ledger = Ledger("shades", connections)
    ledger.claim(_trigger("a"), at_least_s=0)
    (file,) = Path(ledger.uri).glob("*.json")
    file.write_text('{"number": 1')
    with pytest.raises(TriggerError, match=r"000001\.json can't be read .* remove it"):
        ledger.claim(_trigger("b"), at_least_s=0)


def test_the_ledger_is_no_release(connections: Connections) -> None:
    from linnet.release.bundle import releases

    Ledger("shades", connections).claim(_trigger("a"), at_least_s=0)
    assert releases(connections) == []

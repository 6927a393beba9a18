import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from linnet.cli import app
from linnet.errors import ApprovalError, ReleaseError, RolloutAbortedError
from linnet.release.approval import decide, require_approved
from linnet.release.bundle import release, releases
from linnet.rollout.journal import Entry
from linnet.rollout.rollout import Rollouts
from linnet.settings import ReleaseSettings
from linnet.stores.connections import Connections
from linnet.stores.registry import RegisteredRelease, Registry
from tests.release_parts import write_dataset, write_graph, write_report
from tests.rollout.conftest import MODEL, URI

Make = Callable[..., Rollouts]


@pytest.fixture
def waiting(registry: Registry, connections: Connections) -> None:
    """Let v2 wait for an approval."""
    registry.tag(MODEL, f"{URI}/v2", {"release": "v2", "approval": "pending"})


def _tags(registry: Registry, version: str) -> dict[str, str]:
    return next(one.tags for one in registry.releases(MODEL) if one.uri == f"{URI}/{version}")


def test_a_release_gets_no_traffic_before_it_is_approved(
    rollouts: Make, connections: Connections, registry: Registry, waiting: None
) -> None:
    rollouts().start(f"{URI}/v1")
    words = rf"{MODEL} v2 waits for a person's approval: `linnet approve {MODEL} v2`"
    with pytest.raises(ApprovalError, match=words):
        rollouts().start()
    assert rollouts().status().shown.candidate is None
    assert rollouts().start_when_approved(f"{URI}/v2") == "waiting"
    assert registry.champion(MODEL) == f"{URI}/v1"
    decide(MODEL, "v2", "approved", by="ada", reason="looked at", connections=connections)
    assert rollouts().start_when_approved(f"{URI}/v2") == "v2"
    assert registry.champion(MODEL) == f"{URI}/v2"


def test_a_release_that_was_refused_is_not_rolled_out_and_says_by_whom(
    rollouts: Make, connections: Connections, waiting: None
) -> None:
    rollouts().start(f"{URI}/v1")
    decide(MODEL, "v2", "refused", by="grace", reason="wrong labels", connections=connections)
    with pytest.raises(ApprovalError, match=r"refused by grace at 20.*\(wrong labels\)"):
        rollouts().start()


def test_an_approval_withdrawn_during_a_rollout_takes_the_candidate_back(
    rollouts: Make, connections: Connections, registry: Registry, waiting: None
) -> None:
    rollouts().start(f"{URI}/v1")
    decide(MODEL, "v2", "approved", by="ada", connections=connections)

    def withdraw(entry: Entry) -> None:
        if entry.verdict == "done":
            decide(MODEL, "v2", "withdrawn", by="ada", reason="recall", connections=connections)

    with pytest.raises(RolloutAbortedError, match="withdrawn by ada"):
        rollouts(watch=withdraw).start()
    assert registry.champion(MODEL) == f"{URI}/v1"
    assert rollouts().status().shown.candidate is None


def test_who_decided_when_and_why_is_kept_also_of_earlier_decisions(
    connections: Connections, registry: Registry, waiting: None
) -> None:
    first = decide(MODEL, "v2", "approved", by="ada", connections=connections)
    again = decide(MODEL, "v2", "approved", by="eve", connections=connections)
    assert again == first
    decide(MODEL, "candidate", "withdrawn", by="grace", reason="recall", connections=connections)
    tags = _tags(registry, "v2")
    assert (tags["approval"], tags["approval_by"]) == ("withdrawn", "grace")
    history = json.loads(tags["approval_history"])
    assert [(one["state"], one["by"]) for one in history] == [
        ("approved", "ada"),
        ("withdrawn", "grace"),
    ]
    assert history[0]["at"] == first.at


@pytest.mark.parametrize(
    ("version", "decision", "words"),
    [
        ("v9", "approved", r"no release v9 of flowers is registered .*; there is 1, v2"),
        ("v2", "withdrawn", "is pending, so there is no approval to withdraw"),
    ],
)
def test_a_decision_that_makes_no_sense_is_refused(
    version: str, decision: str, words: str, connections: Connections, waiting: None
) -> None:
    with pytest.raises((ApprovalError, ReleaseError), match=words):
        decide(MODEL, version, decision, by="ada", connections=connections)  # type: ignore[arg-type]


def test_an_approved_release_is_not_refused_without_withdrawing(
    connections: Connections, waiting: None
) -> None:
    decide(MODEL, "v2", "approved", by="ada", connections=connections)
    with pytest.raises(ApprovalError, match=r"is approved by ada at .*: withdraw that"):
        decide(MODEL, "v2", "refused", by="eve", connections=connections)


def test_a_first_release_that_needs_approval_is_champion_only_with_it(tmp_path: Path) -> None:
    connections = Connections.from_environment(tmp_path, {})
    graph, dataset = write_graph(tmp_path / "graph"), write_dataset(tmp_path / "dataset")
    report = write_report(tmp_path / "report", graph, dataset)
    settings = ReleaseSettings(approval="required")
    made = release(
        graph, report, dataset, model="colours", settings=settings, connections=connections
    )
    assert made.aliases == ("candidate",)
    (row,) = releases(connections)
    assert row.approval == "pending"
    shown = CliRunner().invoke(
        app,
        ["approve", "colours", "v1", "--by", "ada", "-w", str(tmp_path)],
        catch_exceptions=False,
        env={"MLFLOW_TRACKING_URI": "", "LINNET_RELEASE_ROOT": ""},
    )
    assert "approved" in shown.output
    (row,) = releases(connections)
    assert (row.approval, row.aliases) == ("approved", ("champion",))


def test_a_release_that_asks_for_approval_waits_also_when_the_registry_lost_it() -> None:
    with pytest.raises(ApprovalError, match="waits for a person's approval"):
        require_approved("m", "v1", None, required=True)
    by_hand = RegisteredRelease("m", 1, "u", (), None, {"approval": " Approved "})
    require_approved("m", "v1", by_hand, required=True)
    with pytest.raises(ApprovalError, match="it is perhaps"):
        require_approved("m", "v1", replace(by_hand, tags={"approval": "perhaps"}), required=True)

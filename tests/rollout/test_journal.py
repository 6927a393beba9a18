import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from linnet.errors import RolloutBusyError, RolloutError
from linnet.rollout.cluster import Cluster
from linnet.rollout.journal import Entry, Journal, Lease, Record
from tests.rollout.conftest import MODEL
from tests.rollout.kube import CONFIG_MAP, LEASE, NAMESPACE, Kube

Connect = Callable[..., Cluster]
RECORD = Record(
    model=MODEL,
    candidate="v2",
    candidate_uri="s3://linnet/releases/flowers/v2",
    champion="v1",
    champion_uri="s3://linnet/releases/flowers/v1",
    phase="weights",
    started=1.0,
)
CHECK = {"name": "traffic", "verdict": "hold", "words": "17 requests"}


def lease(cluster: Cluster) -> Lease:
    return Lease(cluster, MODEL, namespace=NAMESPACE, duration_s=1.0)


def test_a_record_comes_back_as_it_was_written(kube: Kube, connect: Connect) -> None:
    journal = Journal(connect(), MODEL, namespace=NAMESPACE)
    assert journal.read() is None
    record = RECORD.with_entry(Entry("2026-01-01T00:00:00", 10, "hold", "little", (CHECK,)))
    journal.begin(record)
    assert journal.read() == record
    later = replace(record, candidate="v3")
    journal.begin(later)
    assert (journal.read(), journal.previous()) == (later, record)


def test_holds_that_look_at_the_same_are_one_entry_with_the_latest_words() -> None:
    entries = [
        Entry("t1", 10, "hold", "17 requests", (CHECK,)),
        Entry("t2", 10, "hold", "31 requests", ({**CHECK, "words": "31 requests"},)),
        Entry("t3", 10, "hold", "errors", ({**CHECK, "name": "errors"},)),
        Entry("t4", 10, "advance", "fine"),
        Entry("t5", 25, "advance", "fine"),
    ]
    record = RECORD
    for entry in entries:
        record = record.with_entry(entry)
    assert [(one.at, one.until, one.times) for one in record.entries] == [
        ("t1", "t2", 2),
        ("t3", "", 1),
        ("t4", "", 1),
        ("t5", "", 1),
    ]
    assert record.entries[0].checks[0]["words"] == "31 requests"


def test_a_damaged_journal_is_said_so(kube: Kube, connect: Connect) -> None:
    body = {"metadata": {"name": f"linnet-rollout-{MODEL}"}, "data": {"rollout.json": "{"}}
    kube.put(CONFIG_MAP, body)
    with pytest.raises(RolloutError, match="journal is damaged"):
        Journal(connect(), MODEL, namespace=NAMESPACE).read()


def test_a_lease_that_is_renewed_is_refused_and_one_that_was_given_back_is_free(
    kube: Kube, connect: Connect
) -> None:
    with lease(connect()) as first:
        first.require()
        with pytest.raises(RolloutBusyError, match="is rolling out flowers"), lease(connect()):
            pass
    began = time.monotonic()
    with lease(connect()):
        assert time.monotonic() - began < 0.5


def test_a_lease_whose_holder_was_killed_is_taken_over(kube: Kube, connect: Connect) -> None:
    spec = {"holderIdentity": "gone", "leaseDurationSeconds": 1, "renewTime": "long ago"}
    kube.put(LEASE, {"metadata": {"name": f"linnet-rollout-{MODEL}"}, "spec": spec})
    with lease(connect()) as taken:
        assert kube.get(LEASE, f"linnet-rollout-{MODEL}")["spec"]["holderIdentity"] == taken.holder


def test_a_holder_that_was_away_finds_out_that_another_took_over(
    kube: Kube, connect: Connect
) -> None:
    with lease(connect()) as first:
        found = kube.get(LEASE, f"linnet-rollout-{MODEL}")
        found["spec"]["holderIdentity"] = "other"
        kube.put(LEASE, found)
        time.sleep(0.6)
        with pytest.raises(RolloutBusyError, match="other took over the rollout"):
            first.require()


def test_of_many_that_start_at_once_one_gets_the_lease(kube: Kube, connect: Connect) -> None:
    got: list[str] = []
    refused: list[str] = []
    ready = threading.Barrier(3)
    connections = [connect(token=f"t{number}") for number in range(3)]

    def take(cluster: Cluster) -> None:
        ready.wait()
        try:
            with lease(cluster) as taken:
                got.append(taken.holder)
                time.sleep(1.5)
        except RolloutBusyError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take, args=(cluster,)) for cluster in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 2)

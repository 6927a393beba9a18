"""What gRPC reads, and what it refuses before it reads."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2 as v2

from tests.serving.bad_messages import infer
from tests.serving.conftest import Running, Start

INFER = "/inference.GRPCInferenceService/ModelInfer"
GOOD = infer().SerializeToString()
MIB = 1 << 20


def refused_total(server: Running, code: str) -> float:
    wanted = f'linnet_refused_total{{code="{code}",protocol="grpc"}} '
    for line in server.get("/metrics")[1].decode().splitlines():
        if line.startswith(wanted):
            return float(line.removeprefix(wanted))
    return 0.0


def flooded(server: Running, message: bytes, *, calls: int) -> tuple[Counter[str], float]:
    """Send a message so many times at once; return the outcomes and the most memory, MiB."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]

    def flood(_: int) -> Counter[str]:
        seen: Counter[str] = Counter()
        with grpc.insecure_channel(server.grpc, options) as channel:
            send = channel.unary_unary(INFER)
            for call in [send.future(message, timeout=60) for _ in range(calls // 4)]:
                code = call.code()
                seen[code.name] += 1
                if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    assert int(dict(call.trailing_metadata())["retry-after"]) >= 1
                    assert "again in" in call.details()
        return seen

    most = server.rss_mib()
    with ThreadPoolExecutor(4) as pool:
        floods = [pool.submit(flood, number) for number in range(4)]
        while not all(one.done() for one in floods):
            most = max(most, server.rss_mib())
            time.sleep(0.02)
    return sum((one.result() for one in floods), Counter[str]()), most


def test_a_sender_that_stalls_is_cut_off_logged_and_counted(start: Start, release: Path) -> None:
    server = start(release, options=("--set", "body_timeout_s=0.5"))
    done = threading.Event()

    def nothing() -> Iterator[bytes]:
        done.wait(20)
        yield GOOD

    with grpc.insecure_channel(server.grpc) as channel:
        with pytest.raises(grpc.RpcError) as late:
            channel.stream_unary(INFER)(nothing(), timeout=15)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "was not sent in time" in late.value.details()
        with pytest.raises(grpc.RpcError) as empty:
            channel.stream_unary(INFER)(iter(()), timeout=15)
        assert empty.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert channel.unary_unary(INFER)(GOOD, timeout=15)
    done.set()
    assert refused_total(server, "DEADLINE_EXCEEDED") == 1.0
    assert refused_total(server, "INVALID_ARGUMENT") == 1.0
    assert '"message":"ModelInfer"' in server.output()


def test_a_message_that_is_too_large_is_counted(start: Start, release: Path) -> None:
    server = start(release, options=("--set", f"max_body_bytes={MIB}"))
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(INFER)(bytes(2 * MIB), timeout=15)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    counted = ("RESOURCE_EXHAUSTED", "CANCELLED", "INVALID_ARGUMENT")
    assert sum(refused_total(server, code) for code in counted) == 1.0


def test_all_messages_together_are_bounded(start: Start, release: Path) -> None:
    side = 1500
    large = infer(shape=(1, side, side, 3), raw=(bytes(side * side * 3),)).SerializeToString()
    limits = ("--set", f"bodies_bytes={24 * MIB}", "--set", "queue_pictures=1000")
    server = start(release, options=(*limits, "--set", "queue_wait_ms=60000"))
    with grpc.insecure_channel(server.grpc) as channel:
        for _ in range(3):
            channel.unary_unary(INFER)(large, timeout=20)
        before = server.rss_mib()
        seen, most = flooded(server, large, calls=96)
        assert set(seen) == {"OK", "RESOURCE_EXHAUSTED"}, seen
        # All of them at once would be 620 MiB, and as much again once decoded. Seen are 44–64:
        # three messages within the budget, in gRPC's buffers and in ours, and what others may send.
        assert most - before < 120
        answer = v2.ModelInferResponse.FromString(channel.unary_unary(INFER)(GOOD, timeout=20))
    assert len(answer.outputs) == 5


def test_what_is_refused_after_it_was_read_is_not_kept(start: Start, release: Path) -> None:
    side = 340
    # Six pictures, 2 MB: where some wait already, there is room for one more but not for six.
    large = infer(shape=(6, side, side, 3), raw=(bytes(6 * side * side * 3),)).SerializeToString()
    limits = ("--set", "queue_pictures=8", "--set", "bodies_bytes=100000000")
    server = start(release, options=limits)
    flooded(server, large, calls=4)
    before = server.rss_mib()
    most = []
    for _ in range(4):
        seen, resident = flooded(server, large, calls=100)
        assert set(seen) == {"OK", "RESOURCE_EXHAUSTED"}, seen
        most.append(resident)
    # Seen are 50–110 above; 240–280 while the errors of refused requests kept their messages.
    assert max(most) - before < 180, (before, most)

"""Clients that nobody here wrote get right answers for real photographs, and so do ours."""

import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from PIL import Image
from tritonclient.utils import InferenceServerException

from linnet.client import Client
from linnet.errors import (
    RequestRefusedError,
    ServerBusyError,
    ServerError,
    ServerUnreachableError,
)
from linnet.inference.local import LocalModel
from linnet.release.bundle import open_release
from tests.serving.conftest import LINNET, Running, free_port
from tests.serving.photographs import forms, opened, photographs, saved
from tests.serving.tiny_release import CLASSES, answers, graph

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs/serving.md"


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Probabilities of the two photographs, computed without anything of the server."""
    return answers(graph(), list(photographs().values()))


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: Running) -> Iterator[Client]:
    address = server.url if request.param == "http" else f"grpc://{server.grpc}"
    with Client(address, model="flowers") as client:
        yield client


def encoded_input(kind: object, pictures: list[bytes], **options: bool) -> object:
    tensor = kind.InferInput("encoded", [len(pictures)], "BYTES")  # type: ignore[attr-defined]
    tensor.set_data_from_numpy(np.array(pictures, dtype=np.object_), **options)
    return tensor


def pixel_input(kind: object, pixels: np.ndarray, **options: bool) -> object:
    tensor = kind.InferInput("pictures", list(pixels.shape), "UINT8")  # type: ignore[attr-defined]
    tensor.set_data_from_numpy(pixels, **options)
    return tensor


@pytest.mark.parametrize("binary_out", [True, False])
def test_tritonclient_over_rest_gets_right_answers(
    binary_out: bool, server: Running, expected: np.ndarray
) -> None:
    with triton_http.InferenceServerClient(f"127.0.0.1:{server.rest_port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("flowers")
        outputs = [
            triton_http.InferRequestedOutput(name, binary_data=binary_out)
            for name in ("label", "probabilities", "abstain")
        ]
        tensor = encoded_input(triton_http, list(photographs().values()), binary_data=True)
        found = client.infer("flowers", [tensor], outputs=outputs, request_id="7")
        np.testing.assert_allclose(found.as_numpy("probabilities"), expected, atol=1e-6)
        labels = [
            one.decode() if isinstance(one, bytes) else one for one in found.as_numpy("label")
        ]
        assert labels == [CLASSES[best] for best in expected.argmax(axis=1)]
        assert found.as_numpy("abstain").tolist() == [False, False]
        assert found.get_response()["id"] == "7"


@pytest.mark.parametrize("binary_in", [True, False])
def test_tritonclient_over_rest_sends_pixels(binary_in: bool, server: Running) -> None:
    pixels = np.stack([np.asarray(opened(name).resize((64, 64))) for name in photographs()])
    with triton_http.InferenceServerClient(f"127.0.0.1:{server.rest_port}") as client:
        found = client.infer("flowers", [pixel_input(triton_http, pixels, binary_data=binary_in)])
    lossless = [saved(Image.fromarray(one), "PNG") for one in pixels]
    np.testing.assert_allclose(
        found.as_numpy("probabilities"), answers(graph(), lossless), atol=1e-6
    )


def test_tritonclient_over_grpc_gets_right_answers(server: Running, expected: np.ndarray) -> None:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("flowers", "v1")
        assert client.get_model_metadata("flowers").name == "flowers"
        found = client.infer(
            "flowers", [encoded_input(triton_grpc, list(photographs().values()))], request_id="7"
        )
    np.testing.assert_allclose(found.as_numpy("probabilities"), expected, atol=1e-6)
    labels = [one.decode() for one in found.as_numpy("label")]
    assert labels == [CLASSES[best] for best in expected.argmax(axis=1)]
    assert found.get_response().id == "7"


def test_tritonclient_reads_our_errors(server: Running) -> None:
    bad = [b"this is no picture"]
    with (
        triton_http.InferenceServerClient(f"127.0.0.1:{server.rest_port}") as client,
        pytest.raises(InferenceServerException, match="picture"),
    ):
        client.infer("flowers", [encoded_input(triton_http, bad, binary_data=True)])
    with (
        triton_grpc.InferenceServerClient(server.grpc) as client,
        pytest.raises(InferenceServerException, match="picture"),
    ):
        client.infer("flowers", [encoded_input(triton_grpc, bad)])


@pytest.mark.parametrize("form", forms())
def test_every_form_of_a_photograph_is_answered_like_here(form: str, client: Client) -> None:
    (found,) = client.predict([forms()[form]])
    expected = answers(graph(), [forms()[form]])[0]
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    assert found.label == CLASSES[int(expected.argmax())]


@pytest.mark.parametrize(
    "form", [name for name in forms() if "gr" not in name and "16" not in name]
)
def test_the_same_photograph_has_the_same_label_in_every_colour_form(
    form: str, client: Client
) -> None:
    original, other = client.predict([forms()["jpeg"], forms()[form]])
    assert original.label == other.label
    np.testing.assert_allclose(original.probabilities, other.probabilities, atol=0.05)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (63, 65), (64, 64), (1999, 3)])
def test_pictures_of_any_size_are_answered(size: tuple[int, int], client: Client) -> None:
    picture = saved(opened().resize(size), "PNG")
    (found,) = client.predict([picture])
    np.testing.assert_allclose(found.probabilities, answers(graph(), [picture])[0], atol=1e-6)
    pixels = np.asarray(opened().resize(size))[None]
    (from_pixels,) = client.predict(np.ascontiguousarray(pixels))
    np.testing.assert_allclose(found.probabilities, from_pixels.probabilities, atol=1e-6)


def test_answers_don_t_depend_on_company_or_time(client: Client) -> None:
    pictures = [*photographs().values(), *list(forms().values())[:6]]
    alone = [client.predict([picture])[0].probabilities for picture in pictures]
    for _ in range(5):
        together = [answer.probabilities for answer in client.predict(pictures)]
        np.testing.assert_allclose(np.stack(together), np.stack(alone), atol=1e-6)


def test_both_protocols_and_this_machine_give_the_same_answers(
    server: Running, release: Path, tmp_path: Path
) -> None:
    pictures = list(photographs().values())
    found = LocalModel(open_release(release, scratch=tmp_path)).predict(pictures)
    for address in (server.url, f"grpc://{server.grpc}"):
        with Client(address, model="flowers") as client:
            served = client.predict(pictures)
        assert [one.label for one in served] == [one.label for one in found]
        assert [one.release for one in served] == [one.release for one in found]
        for one, other in zip(served, found, strict=True):
            np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)


def test_more_pictures_than_a_request_may_have_go_in_several(client: Client) -> None:
    found = client.predict([photographs()["china.jpg"]] * 37)
    assert len(found) == 37
    assert len({answer.label for answer in found}) == 1


def test_large_pictures_go_in_requests_that_the_server_takes(client: Client) -> None:
    large = saved(opened().resize((2_000, 1_500)), "BMP")
    assert len({answer.label for answer in client.predict([large] * 5)}) == 1
    pixels = np.zeros((4, 1_800, 1_000, 3), np.uint8)
    assert len(client.predict(pixels)) == 4


def test_one_picture_beyond_all_limits_is_refused_in_words(client: Client) -> None:
    with pytest.raises(RequestRefusedError, match=r"large|pixels|bytes|max"):
        client.predict([bytes(40 << 20)])


def test_the_model_is_described(client: Client) -> None:
    said = client.describe()
    assert (said.name, said.versions) == ("flowers", ("v1",))
    assert [(one.name, one.datatype) for one in said.inputs] == [
        ("pictures", "UINT8"),
        ("encoded", "BYTES"),
    ]
    assert said.outputs[2].shape == (-1, len(CLASSES))
    assert client.ready()


def test_a_server_with_one_model_needs_no_name(server: Running) -> None:
    with Client(server.url) as client:
        assert client.model == "flowers"


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3)), np.zeros((1, 4, 4, 1), np.uint8)],
)
def test_wrong_arrays_are_refused_before_they_are_sent(wrong: np.ndarray, client: Client) -> None:
    with pytest.raises(RequestRefusedError, match=r"\[N, H, W, 3\]"):
        client.predict(wrong)
    with pytest.raises(RequestRefusedError, match="read_bytes"):
        client.predict(["rose.jpg"])  # type: ignore[list-item]


def test_a_refusal_carries_the_servers_words(client: Client) -> None:
    with pytest.raises(RequestRefusedError, match=r"not_a_picture|picture"):
        client.predict([photographs()["china.jpg"], b"no picture at all"])


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_an_unknown_model_and_version_are_named(scheme: str, server: Running) -> None:
    address = server.url if scheme == "http" else f"grpc://{server.grpc}"
    for model, version in (("nope", None), ("flowers", "v99")):
        with (
            Client(address, model=model, version=version) as client,
            pytest.raises(RequestRefusedError, match=version or model),
        ):
            client.predict([photographs()["china.jpg"]])
        with Client(address, model=model, version=version) as client:
            assert not client.ready()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_is_not_there_is_an_error_that_says_so(scheme: str) -> None:
    address = f"{scheme}://127.0.0.1:{free_port()}"
    with Client(address, model="flowers", retries=1, timeout_s=2) as client:
        assert not client.ready()
        with pytest.raises(ServerUnreachableError, match="linnet serve"):
            client.predict([photographs()["china.jpg"]])


@pytest.mark.parametrize("address", ["localhost:8080", "ftp://x", "http://", ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ServerError, match="http://localhost:8080"):
        Client(address, model="flowers")


@pytest.fixture
def odd_server() -> Iterator[Callable[..., str]]:
    """A server that answers as told, in turn."""
    running = []

    def start(*said: tuple[int, dict[str, str], bytes]) -> str:
        left = list(said)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status, headers, body = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        httpd = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        running.append((httpd, thread))
        return f"http://127.0.0.1:{httpd.server_port}"

    yield start
    for httpd, thread in running:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


GOOD = json.dumps(
    {
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["rose"]},
            {"name": "score", "datatype": "FP32", "shape": [1], "data": [0.75]},
            {"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "data": [0.75, 0.25]},
            {"name": "abstain", "datatype": "BOOL", "shape": [1], "data": [False]},
            {"name": "release", "datatype": "BYTES", "shape": [1], "data": ["flowers/v1"]},
        ]
    }
).encode()
BUSY = (429, {"Retry-After": "1"}, b'{"error": "the queue is full: try again"}')


def test_a_busy_server_is_asked_again_after_the_time_that_it_says(
    odd_server: Callable[..., str],
) -> None:
    began = time.monotonic()
    with Client(odd_server(BUSY, (503, {}, b""), (200, {}, GOOD)), model="m") as client:
        (answer,) = client.predict([b"x"])
    assert (answer.label, answer.score, answer.release) == ("rose", 0.75, "flowers/v1")
    assert 1 <= time.monotonic() - began < 4


def test_a_server_that_stays_busy_is_given_up(odd_server: Callable[..., str]) -> None:
    with (
        Client(odd_server(BUSY), model="m", retries=1) as client,
        pytest.raises(ServerBusyError, match="the queue is full"),
    ):
        client.predict([b"x"])


@pytest.mark.parametrize(
    "said",
    [
        (200, {}, b"<html>hello</html>"),
        (200, {}, b"[]"),
        (200, {}, b'{"outputs": []}'),
        (200, {}, GOOD.replace(b'"rose"', b'"rose", "rose"')),
        (200, {}, GOOD.replace(b"label", b"lable")),
        (200, {"Inference-Header-Content-Length": "9"}, GOOD),
        (500, {}, b"oh no"),
    ],
)
def test_an_answer_that_is_none_is_an_error_and_no_traceback(
    said: tuple[int, dict[str, str], bytes], odd_server: Callable[..., str]
) -> None:
    with Client(odd_server(said), model="m") as client, pytest.raises(ServerError):
        client.predict([b"x"])


def linnet(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(LINNET), "predict", *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for name, encoded in photographs().items():
        (folder / name).write_bytes(encoded)
    return [str(folder / name) for name in photographs()]


def test_linnet_predict_says_the_same_here_and_through_a_server(
    server: Running, release: Path, pictures: list[str]
) -> None:
    said = [
        json.loads(linnet(*pictures, "--json", *where).stdout)
        for where in (
            ("--release", str(release)),
            ("--server", server.url),
            ("--server", f"grpc://{server.grpc}", "--model", "flowers"),
        )
    ]
    assert [row["picture"] for row in said[0]] == pictures
    for here, row in zip((*said[0], *said[0]), (*said[1], *said[2]), strict=True):
        assert {key: here[key] for key in ("picture", "label", "abstain", "release")} == {
            key: row[key] for key in ("picture", "label", "abstain", "release")
        }
        np.testing.assert_allclose(here["probabilities"], row["probabilities"], atol=1e-6)


def test_linnet_predict_shows_a_table(server: Running, pictures: list[str]) -> None:
    said = linnet(*pictures, "--server", server.url).stdout
    assert "temple" in said
    assert "flowers/v1" in said


def test_linnet_predict_says_what_is_wrong(
    server: Running, release: Path, pictures: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("no picture")
    for arguments, code, words in (
        (pictures, 2, "--server"),
        ([*pictures, "--server", server.url, "--release", str(release)], 2, "either"),
        ([str(tmp_path / "gone.jpg"), "--release", str(release)], 1, "gone.jpg"),
        ([str(tmp_path / "a.txt"), "--release", str(release)], 1, "picture"),
        ([str(tmp_path / "a.txt"), "--server", server.url], 1, "picture"),
        ([*pictures, "--release", str(tmp_path)], 1, "release"),
        ([*pictures, "--server", "grpc://" + server.grpc], 1, "which model"),
    ):
        done = linnet(*arguments)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_the_client_needs_nothing_heavy() -> None:
    program = (
        "import sys, linnet.client\n"
        "heavy = ('torch', 'onnxruntime', 'PIL', 'pyarrow', 'grpc', 'pydantic', 'mlflow')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def documented() -> list[str]:
    """The commands of docs/serving.md that call a running server."""
    if not DOCS.exists():
        return []
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in blocks if re.search(r"(^|\| ?)(curl|grpcurl) ", block, re.MULTILINE)]


@pytest.mark.skipif(not documented(), reason="docs/serving.md has no commands to run")
@pytest.mark.parametrize("block", documented(), ids=lambda block: block.strip()[:60])
def test_documented_commands_work(block: str, server: Running, curl: str, tmp_path: Path) -> None:
    if "grpcurl" in block and shutil.which("grpcurl") is None:
        pytest.skip("grpcurl is not installed: github.com/fullstorydev/grpcurl/cmd/grpcurl")
    (tmp_path / "rose.jpg").write_bytes(photographs()["flower.jpg"])
    script = (
        block.replace("localhost:8080", f"127.0.0.1:{server.rest_port}")
        .replace("localhost:8081", server.grpc)
        .replace("src/linnet", str(ROOT / "src/linnet"))
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert '"error"' not in done.stdout, done.stdout
    assert re.search(rf"ready|name|live|# HELP|{'|'.join(CLASSES)}", done.stdout), done.stdout


def test_plain_curl_posts_a_photograph(server: Running, curl: str, tmp_path: Path) -> None:
    (tmp_path / "rose.jpg").write_bytes(photographs()["china.jpg"])
    done = subprocess.run(
        [
            curl,
            "-sS",
            "--fail-with-body",
            "-H",
            "Content-Type: image/jpeg",
            "--data-binary",
            "@rose.jpg",
            f"{server.url}/predict/flowers",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["label"] == "temple"


def test_v1_predict_answers_photographs(server: Running, expected: np.ndarray) -> None:
    import base64

    instances = [{"b64": base64.b64encode(one).decode()} for one in photographs().values()]
    status, body = server.send(
        "POST",
        "/v1/models/flowers:predict",
        json.dumps({"instances": instances}).encode(),
        {"Content-Type": "application/json"},
    )
    assert status == 200, body
    labels = [one["label"] for one in json.loads(body)["predictions"]]
    assert labels == [CLASSES[best] for best in expected.argmax(axis=1)]


def test_a_photograph_survives_a_large_batch_of_sizes(client: Client) -> None:
    rng = np.random.default_rng(3)
    pictures = []
    for _ in range(24):
        width, height = rng.integers(5, 700, 2)
        out = BytesIO()
        opened().resize((int(width), int(height))).save(out, "JPEG")
        pictures.append(out.getvalue())
    found = np.stack([one.probabilities for one in client.predict(pictures)])
    np.testing.assert_allclose(found, answers(graph(), pictures), atol=1e-6)

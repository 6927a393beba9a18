import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from linnet.cli import app
from linnet.errors import LinnetError, ReleaseError, SettingsError
from linnet.release.bundle import open_release, release
from linnet.release.signing import SIGNATURE, sign
from linnet.settings import ReleaseSettings
from linnet.stores.connections import Connections
from linnet.stores.objects import sha256_of
from tests.release_parts import write_dataset, write_graph, write_report

Make = Callable[[Connections | None], Path]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two key pairs made by openssl, as the docs say."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        key = folder / f"{name}.pem"
        make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key]
        subprocess.run(make, check=True)
        public = ["openssl", "ec", "-in", key, "-pubout", "-out", folder / f"{name}.pub"]
        subprocess.run(public, check=True, capture_output=True)
    locked = ["openssl", "ec", "-in", folder / "ours.pem", "-aes256", "-passout", "pass:secret"]
    subprocess.run([*locked, "-out", folder / "locked.pem"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what a release is made of."""
    parts = tmp_path_factory.mktemp("parts")
    write_report(parts / "report", write_graph(parts / "graph"), write_dataset(parts / "dataset"))
    return parts


@pytest.fixture
def make(parts: Path, tmp_path: Path) -> Make:
    """Return what publishes a release, with connections a registered one, and gives its folder."""

    def publish(connections: Connections | None) -> Path:
        published = release(
            parts / "graph",
            parts / "report",
            parts / "dataset",
            model="colours",
            settings=ReleaseSettings(root=str(tmp_path / "releases")),
            connections=connections,
        )
        return Path(published.uri)

    return publish


@pytest.fixture
def anyone(tmp_path: Path) -> Connections:
    """Return connections that neither sign nor ask for a signature."""
    return Connections.from_environment(tmp_path / "workspace", environ={})


def _opened(folder: Path, connections: Connections) -> str:
    scratch = folder.parent / "scratch"
    return open_release(folder, scratch=scratch, connections=connections).version


def test_a_release_made_with_a_key_opens_where_that_key_is_trusted(
    make: Make, keys: Path, anyone: Connections
) -> None:
    folder = make(replace(anyone, signing_key=str(keys / "ours.pem")))
    assert (folder / SIGNATURE).is_file()
    assert _opened(folder, anyone) == "v1"
    assert _opened(folder, replace(anyone, trusted_key=str(keys / "ours.pub"))) == "v1"
    assert _opened(folder, replace(anyone, trusted_key=(keys / "ours.pub").read_text())) == "v1"
    with pytest.raises(ReleaseError, match="Key mismatch"):
        _opened(folder, replace(anyone, trusted_key=str(keys / "theirs.pub")))


def test_an_unsigned_release_is_refused_where_a_key_is_trusted(
    make: Make, keys: Path, anyone: Connections
) -> None:
    folder = make(None)
    with pytest.raises(ReleaseError, match=r"is not signed, .*linnet sign"):
        _opened(folder, replace(anyone, trusted_key=str(keys / "ours.pub")))


def test_a_file_changed_together_with_its_digest_is_found_by_the_signature(
    make: Make, keys: Path, anyone: Connections
) -> None:
    folder = make(None)
    sign(folder, str(keys / "ours.pem"))
    (folder / "report.html").write_text("all is well")
    manifest = json.loads((folder / "release.json").read_text())
    manifest["files"]["report.html"]["sha256"] = sha256_of(folder / "report.html")
    (folder / "release.json").write_text(json.dumps(manifest))
    assert _opened(folder, anyone) == "v1"
    with pytest.raises(ReleaseError, match=r"not as the owner .* signed it.*report\.html"):
        _opened(folder, replace(anyone, trusted_key=str(keys / "ours.pub")))


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"mediaType": 1}', "cut"])
def test_a_damaged_signature_is_refused(
    damage: str, make: Make, keys: Path, anyone: Connections
) -> None:
    folder = make(None)
    sign(folder, str(keys / "ours.pem"))
    text = (folder / SIGNATURE).read_text()
    (folder / SIGNATURE).write_text(text[: len(text) // 2] if damage == "cut" else damage)
    with pytest.raises(ReleaseError, match="not as the owner"):
        _opened(folder, replace(anyone, trusted_key=str(keys / "ours.pub")))


def test_a_release_can_be_signed_later_and_again_with_another_key(
    make: Make,
    keys: Path,
    anyone: Connections,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make(None)
    for whose in ("ours", "theirs"):
        monkeypatch.setenv("LINNET_SIGNING_KEY", str(keys / f"{whose}.pem"))
        result = CliRunner().invoke(app, ["sign", str(folder)])
        assert result.exit_code == 0, result.output
        assert _opened(folder, replace(anyone, trusted_key=str(keys / f"{whose}.pub"))) == "v1"


@pytest.mark.parametrize(
    ("key", "password", "message"),
    [
        ("absent.pem", None, "names .*absent.pem', which is no file"),
        ("ours.pub", None, "not a private key that can be used"),
        ("locked.pem", None, "LINNET_SIGNING_PASSWORD"),
        ("locked.pem", "wrong", "LINNET_SIGNING_PASSWORD"),
    ],
)
def test_a_key_that_cannot_sign_leaves_no_release(
    key: str,
    password: str | None,
    message: str,
    make: Make,
    keys: Path,
    anyone: Connections,
    tmp_path: Path,
) -> None:
    with pytest.raises(LinnetError, match=message):
        make(replace(anyone, signing_key=str(keys / key), signing_password=password))
    assert not list((tmp_path / "releases").glob("*/*"))


def test_a_password_opens_a_locked_key(make: Make, keys: Path, anyone: Connections) -> None:
    folder = make(None)
    sign(folder, str(keys / "locked.pem"), "secret")
    assert _opened(folder, replace(anyone, trusted_key=str(keys / "ours.pub"))) == "v1"


def test_what_is_no_public_key_is_named(make: Make, keys: Path, anyone: Connections) -> None:
    folder = make(None)
    sign(folder, str(keys / "ours.pem"))
    for key, message in (("absent.pub", "which is no file"), ("ours.pem", "not a public key")):
        with pytest.raises(SettingsError, match=message):
            _opened(folder, replace(anyone, trusted_key=str(keys / key)))

"""A server that trusts one key serves what its owner signed, and nothing else."""

import subprocess
from pathlib import Path

import pytest

from linnet.release.signing import TRUSTED_KEY, sign
from tests.serving.conftest import launch, wait_until_ready
from tests.serving.photographs import photographs
from tests.serving.tiny_release import write_release


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, dict[str, str]]:
    """Return a private key's path, and the environment that trusts it."""
    key, public = tmp_path / "key.pem", tmp_path / "key.pub"
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key]
    subprocess.run(make, check=True)
    tell = ["openssl", "ec", "-in", key, "-pubout", "-out", public]
    subprocess.run(tell, check=True, capture_output=True)
    return str(key), {TRUSTED_KEY: str(public)}


def test_a_release_is_served_signed_and_refused_unsigned_or_changed(
    keys: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    key, trusting = keys
    release = write_release(tmp_path / "releases", photographs())
    unsigned = launch(tmp_path, release, environment=trusting)
    assert unsigned.process.wait(60) == 1
    assert "is not signed, and only signed releases are trusted here" in unsigned.output()

    sign(release, key)
    signed = launch(tmp_path, release, environment=trusting)
    try:
        wait_until_ready(signed)
        assert signed.get("/v2/models/flowers/ready")[0] == 200
    finally:
        assert signed.stop() == 0

    manifest = release / "release.json"
    manifest.write_text(manifest.read_text().replace('"daisy"', '"poppy"'))
    changed = launch(tmp_path, release, environment=trusting)
    assert changed.process.wait(60) == 1
    assert "is not as the owner of LINNET_TRUSTED_KEY signed it" in changed.output()

"""Signatures of releases: who vouches for the files, beside digests, which say that they are whole.

A signature is a Sigstore bundle of OpenSSF's model-signing over every file of a release, made and
verified offline with an elliptic-curve key pair (`openssl ecparam -name prime256v1 -genkey`).
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from linnet.errors import ReleaseError, SettingsError

SIGNATURE = "release.sig"
SIGNING_KEY = "LINNET_SIGNING_KEY"
TRUSTED_KEY = "LINNET_TRUSTED_KEY"


def sign(folder: Path, key: str, password: str | None = None) -> None:
    """Write `release.sig` into a release's folder, over all its other files.

    `key` is a private key: a PEM file's path, or the PEM itself.

    Raises:
        SettingsError: the key can't be read, is of another kind, or the password is wrong.
    """
    signing, _ = _library()
    with _file(key, SIGNING_KEY) as path:
        try:
            # The library's hint says text, and it wants bytes.
            config = signing.Config().use_elliptic_key_signer(
                private_key=path, password=None if password is None else password.encode()
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise SettingsError(
                f"{SIGNING_KEY} is not a private key that can be used ({error}): give a PEM file "
                "of prime256v1, secp384r1 or secp521r1, and LINNET_SIGNING_PASSWORD if it has one"
            ) from error
    (folder / SIGNATURE).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as beside:
        config.sign(folder, Path(beside) / SIGNATURE)
        (folder / SIGNATURE).write_bytes((Path(beside) / SIGNATURE).read_bytes())


def verify(folder: Path, key: str, *, uri: str) -> None:
    """Check that the owner of a key signed a release's files as they are.

    `key` is a public key: a PEM file's path, or the PEM itself. `uri` is what errors call it.

    Raises:
        ReleaseError: there is no signature, it is of another key, or files are not those signed.
        SettingsError: the key can't be read.
    """
    from cryptography.exceptions import InvalidSignature

    _, verifying = _library()
    if not (folder / SIGNATURE).is_file():
        raise ReleaseError(
            f"{uri} is not signed, and only signed releases are trusted here ({TRUSTED_KEY} is "
            f"set): sign it with `linnet sign {uri}`"
        )
    with _file(key, TRUSTED_KEY) as path:
        try:
            config = verifying.Config().use_elliptic_key_verifier(public_key=path)
        except (ValueError, TypeError, AttributeError) as error:
            raise SettingsError(
                f"{TRUSTED_KEY} is not a public key ({error}): give a PEM file, such as "
                "`openssl ec -in key.pem -pubout` writes"
            ) from error
    try:
        config.set_ignore_unsigned_files(True).verify(folder, folder / SIGNATURE)
    except (ValueError, LookupError, TypeError, AttributeError, InvalidSignature) as error:
        why = str(error) or "the signature doesn't fit"
        raise ReleaseError(
            f"{uri} is not as the owner of {TRUSTED_KEY} signed it ({why}): don't use it; find out "
            "who changed it, or give the key of who signed it"
        ) from error


def _library() -> tuple[Any, Any]:
    """Return the modules that sign and verify; their import takes a second."""
    try:
        from model_signing import signing, verifying
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"signatures need a package that is not installed here ({error}): "
            "pip install 'linnet[sign]'"
        ) from error
    return signing, verifying


@contextmanager
def _file(key: str, variable: str) -> Iterator[Path]:
    """Yield the path of a key that is given as a path, or as PEM text."""
    if key.lstrip().startswith("-----BEGIN"):
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(key)
            file.flush()
            yield Path(file.name)
        return
    if not Path(key).is_file():
        raise SettingsError(f"{variable} names {key!r}, which is no file: check the path")
    yield Path(key)

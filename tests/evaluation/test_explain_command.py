"""`linnet explain`: releases and checkpoints, what it writes, and what it refuses."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from linnet.cli import app
from linnet.errors import LinnetError, NetworkError, PictureError, ReleaseError, SettingsError
from linnet.explaining import explain_files
from linnet.stores.objects import sha256_of
from tests.checkpoints import write_checkpoint
from tests.pictures import jpeg, write_tree
from tests.release_parts import CLASSES, VERSION, write_graph


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph that names the brightest colour; green is answered from 0.1 up."""
    folder = write_graph(tmp_path_factory.mktemp("release") / "v1")
    model = folder / "model.onnx"
    manifest = {
        "kind": "linnet/release/v1",
        "model": "colours",
        "version": "v1",
        "classes": CLASSES,
        "preprocessing": {"size_px": 8, "fit": "pad"},
        "thresholds": {"blue": 0.45, "green": 0.1, "red": 0.45},
        "files": {"model.onnx": {"sha256": sha256_of(model), "size": model.stat().st_size}},
        "metrics": {},
        "provenance": {"dataset_version": VERSION},
    }
    (folder / "release.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return write_tree(tmp_path, {"photo.jpg": jpeg(1, 1500, 900)}) / "photo.jpg"


def test_the_releases_answer_is_explained_and_drawn_on_the_picture(
    release: Path, photo: Path, tmp_path: Path
) -> None:
    (found,) = explain_files([photo], release=str(release), output=tmp_path / "overlay.png")
    assert found.label == "green", "by the release's thresholds"
    assert 0.1 < found.probability < 0.5
    with Image.open(found.overlay) as drawn:
        assert drawn.width == 1024
        pixels = np.asarray(drawn.convert("RGB"), int)[:614]
    assert np.ptp(pixels, axis=2).max() > 50, "in colour"
    (red,) = explain_files([photo], release=str(release), label="red", output=tmp_path)
    assert red.overlay == tmp_path / "photo-occlusion.png"
    assert red.overlay.read_bytes() != found.overlay.read_bytes()


def test_a_checkpoint_is_explained_by_every_method(photo: Path, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "test_resnet", side=64)
    said = {
        method: explain_files(
            [photo], checkpoint=checkpoint, method=method, layer=layer, output=tmp_path
        )[0]
        for method, layer in (
            ("occlusion", None),
            ("integrated_gradients", None),
            ("grad_cam", "layer2"),
        )
    }
    assert len({each.overlay.read_bytes() for each in said.values()}) == 3
    assert len({each.label for each in said.values()}) == 1
    assert len({round(each.probability, 4) for each in said.values()}) == 1


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        ({"label": "gren"}, SettingsError, "'gren' is no class.*did you mean green"),
        ({"label": "xyz"}, SettingsError, "it has blue, green, red"),
        ({"method": "magic"}, SettingsError, "'magic' is not known: expected occlusion"),
        ({"method": "grad_cam"}, SettingsError, "a release has only its graph: give --checkpoint"),
        ({"layer": "blocks.1"}, SettingsError, "is for --method grad_cam, got occlusion"),
        ({"release": None}, SettingsError, "needs either --release"),
        ({"release": "nowhere"}, ReleaseError, "nowhere is not a finished release"),
        ({"output": Path("overlay.jpg")}, SettingsError, r"is no folder yet.*ends in \.png"),
        ({"output": Path("absent/overlay.png")}, LinnetError, "no such file or folder"),
    ],
)
def test_what_cant_be_explained_is_an_error(
    release: Path, photo: Path, asked: dict[str, object], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        explain_files([photo], **{"release": str(release), **asked})  # type: ignore[arg-type]


def test_a_broken_picture_is_named_and_nothing_is_written(
    release: Path, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:2000])
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(PictureError, match=r"broken: .*broken\.jpg"):
        explain_files([photo, tmp_path / "broken.jpg"], release=str(release), output=out)
    assert not list(out.iterdir())


def test_two_pictures_of_one_name_are_not_written_over_each_other(
    release: Path, photo: Path, tmp_path: Path
) -> None:
    other = write_tree(tmp_path / "other", {"photo.jpg": jpeg(2)}) / "photo.jpg"
    with pytest.raises(SettingsError, match=r"written to .*photo-occlusion\.png"):
        explain_files([photo, other], release=str(release), output=tmp_path)
    with pytest.raises(SettingsError, match="is no folder, and there are 2 pictures"):
        explain_files([photo, other], release=str(release), output=tmp_path / "one.png")


def test_a_checkpoint_without_torch_says_what_to_install(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "linnet.training.attribution", raising=False)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(NetworkError, match=r"pip install 'linnet\[train\]'"):
        explain_files([photo], checkpoint=tmp_path, output=tmp_path)


def test_the_command_says_label_probability_and_where_it_wrote(
    release: Path, photo: Path, tmp_path: Path
) -> None:
    command = [
        "explain",
        str(photo),
        "--release",
        str(release),
        "--output",
        str(tmp_path / "o.png"),
    ]
    as_json = CliRunner().invoke(app, [*command, "--json"])
    assert as_json.exit_code == 0
    (row,) = json.loads(as_json.stdout)
    assert row["label"] == "green"
    assert Path(row["overlay"]).is_file()
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0
    assert "green" in shown.stdout

"""Which pictures come first, out of a batch, a prediction log or a folder."""

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from linnet.annotation.selection import Answered, choose
from linnet.batch.predicting import batch
from linnet.errors import AnnotationError
from linnet.settings import SourceSettings
from tests.pictures import good_pictures, jpeg, write_tree
from tests.serving.conftest import launch, wait_until_ready
from tests.serving.tiny_release import write_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("releases"), {"one.jpg": jpeg(1)})


def answered(*probabilities: float) -> Answered:
    return Answered("k", "a", max(probabilities), "m/v1", np.array(probabilities))


def test_margin_entropy_and_confidence_rank_by_what_they_say() -> None:
    torn, vague, sure = answered(0.5, 0.5, 0), answered(0.4, 0.3, 0.3), answered(1.0, 0, 0)
    assert torn.entropy == pytest.approx(1.0)
    assert sure.entropy == 0.0
    assert sorted([sure, vague, torn], key=lambda a: a.rank("margin")) == [torn, vague, sure]
    assert sorted([sure, vague, torn], key=lambda a: a.rank("entropy")) == [vague, torn, sure]
    assert sorted([sure, vague, torn], key=lambda a: a.rank("confidence")) == [vague, torn, sure]


def test_a_batch_and_a_folder_give_the_same_pictures_and_each_content_once(
    release: Path, tmp_path: Path
) -> None:
    pictures = {f"{n}.jpg": jpeg(n) for n in range(12)} | {"again.jpg": jpeg(3)}
    write_tree(tmp_path / "in", pictures)
    batch(SourceSettings(uri=str(tmp_path / "in")), str(release), str(tmp_path / "out"))
    of_batch = choose(str(tmp_path / "out"), order="margin", limit=5)
    of_folder = choose(str(tmp_path / "in"), order="margin", limit=5, release=str(release))
    keys = [c.answer.key for c in of_batch.candidates]
    assert keys == [c.answer.key for c in of_folder.candidates]
    margins = [c.answer.margin for c in of_batch.candidates]
    assert len(margins) == 5
    assert margins == sorted(margins)
    assert all(c.encoded == pictures[c.answer.key] for c in of_batch.candidates)
    known = [c.sha256 for c in of_batch.candidates]
    rest = choose(str(tmp_path / "out"), order="margin", limit=99, known=known)
    assert len(rest.candidates) == 12 - 5
    assert rest.known == 5 + 1
    assert min(c.answer.margin for c in rest.candidates) >= max(margins)


def test_what_browsers_do_not_show_is_sent_as_png(release: Path, tmp_path: Path) -> None:
    tiff = good_pictures()["photo.tif"]
    write_tree(tmp_path / "in", {"a.tif": tiff})
    (candidate,) = choose(
        str(tmp_path / "in"), order="entropy", limit=1, release=str(release)
    ).candidates
    assert candidate.suffix == "png"
    shown = np.asarray(Image.open(io.BytesIO(candidate.encoded)))
    np.testing.assert_array_equal(shown, np.asarray(Image.open(io.BytesIO(tiff))))


def test_a_picture_that_is_gone_is_counted(release: Path, tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {f"{n}.jpg": jpeg(n) for n in range(3)})
    batch(SourceSettings(uri=str(tmp_path / "in")), str(release), str(tmp_path / "out"))
    os.remove(tmp_path / "in/1.jpg")
    chosen = choose(str(tmp_path / "out"), order="margin", limit=9)
    assert (len(chosen.candidates), chosen.unusable) == (2, 1)


def test_a_prediction_log_gives_the_least_certain_of_its_last_hours(
    release: Path, tmp_path: Path
) -> None:
    (tmp_path / "server").mkdir()
    options = ("--log-to", str(tmp_path / "log"), "--set", "prediction_log.pictures=original")
    options += ("--set", "prediction_log.share=1.0", "--set", "prediction_log.per_second=1000")
    server = launch(tmp_path / "server", release, options=options)
    pictures = [jpeg(n) for n in range(6)]
    try:
        wait_until_ready(server)
        for picture in [*pictures, pictures[0]]:
            octets = {"Content-Type": "application/octet-stream"}
            assert server.send("POST", "/predict/flowers", picture, octets)[0] == 200
    finally:
        server.stop()
    chosen = choose(str(tmp_path / "log"), order="margin", limit=3, model="flowers", hours=1.0)
    margins = [c.answer.margin for c in chosen.candidates]
    assert margins == sorted(margins)
    assert len(margins) == 3
    assert chosen.known == 1
    assert all(c.encoded in pictures for c in chosen.candidates)
    everything = choose(str(tmp_path / "log"), order="margin", limit=99).candidates
    assert [c.answer.key for c in everything[:3]] == [c.answer.key for c in chosen.candidates]
    time.sleep(0.01)
    assert not choose(str(tmp_path / "log"), order="margin", limit=9, hours=1e-6).candidates
    with pytest.raises(AnnotationError, match="answers of flowers, not of pets"):
        choose(str(tmp_path / "log"), order="margin", limit=9, model="pets")


def test_a_place_that_is_neither_is_told_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="neither the output of `linnet batch` nor"):
        choose(str(tmp_path), order="margin", limit=9)

"""Explanations need answers alone, so a server gives them as the graph itself does."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from linnet.client import Client
from linnet.evaluation.explanation import explain
from linnet.inference.local import LocalModel
from linnet.release.opening import open_release
from tests.pictures import photograph
from tests.serving.conftest import Running
from tests.serving.tiny_release import SIZE


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_servers_answers_explain_as_the_release_does(
    protocol: str, server: Running, release: Path, tmp_path: Path
) -> None:
    picture = np.asarray(photograph(3).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    here = explain(LocalModel(open_release(release, scratch=tmp_path)).probabilities, picture)
    address = server.url if protocol == "http" else f"grpc://{server.grpc}"
    with Client(address, model="flowers") as client:
        there = explain(
            lambda batch: np.stack([one.probabilities for one in client.predict(batch)]), picture
        )
    assert there.label == here.label
    assert here.attribution.any()
    np.testing.assert_allclose(there.attribution, here.attribution, atol=1e-3)

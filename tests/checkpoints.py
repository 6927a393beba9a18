"""Checkpoints of real networks, small and untrained."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from linnet.data.preprocessing import Preprocessing
from linnet.training.checkpoint import CheckpointManifest
from linnet.training.network import build
from tests.release_parts import CLASSES, VERSION

SIDE = 32


def write_checkpoint(
    path: Path, network: str = "resnet10t", *, sharpness: float = 1.0, side: int = SIDE
) -> Path:
    """Write an untrained network whose answers differ between pictures."""
    path.mkdir()
    torch.manual_seed(0)
    built = build(network, len(CLASSES), size_px=side)
    with torch.no_grad():
        for parameter in built.get_classifier().parameters():  # type: ignore[operator]
            torch.nn.init.normal_(parameter, std=sharpness)
    save_file(built.state_dict(), path / "model.safetensors")
    manifest = CheckpointManifest(
        network=network,
        classes=CLASSES,
        preprocessing=Preprocessing(side),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.3),
        dropout=0.0,
        dataset_version=VERSION,
        code_revision="abc",
        settings={},
        metrics={},
        tracking_run_id="run",
        linnet="0",
    )
    (path / "model.json").write_text(json.dumps(manifest.to_json()))
    return path

"""The parts of a release, small and real: pictures of one colour and a graph that names it."""

import io
import json
from pathlib import Path

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper
from PIL import Image

from linnet.data.preprocessing import Preprocessing
from linnet.evaluation.evaluate import evaluate
from linnet.evaluation.gate import gate
from linnet.inference.session import GraphManifest, Parity
from linnet.settings import EvaluateSettings, GateSettings
from linnet.stores.objects import sha256_of

CLASSES = ("blue", "green", "red")
SIDE = 8
VERSION = "0123456789ab"


def write_dataset(path: Path, *, per_class: int = 4) -> Path:
    """Write pictures of one colour each; `label` follows the alphabet."""
    path.mkdir(parents=True)
    counts = {}
    for split in ("train", "val", "test"):
        rows = [_row(split, label, number) for label in range(3) for number in range(per_class)]
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path / f"{split}-00000.parquet")
        counts[split] = dict.fromkeys(CLASSES, per_class)
    manifest = {
        "kind": "linnet/dataset/v1",
        "version": VERSION,
        "classes": CLASSES,
        "counts": counts,
        "mean": [0.3, 0.3, 0.3],
        "std": [0.4, 0.4, 0.4],
        "source": "colours",
    }
    (path / "dataset.json").write_text(json.dumps(manifest), encoding="utf-8")
    return path


def write_graph(path: Path, *, run_id: str | None = None, temperature: float = 1.0) -> Path:
    """Write a graph that answers with the brightest channel: blue, green or red."""
    path.mkdir(parents=True)
    nodes = [
        helper.make_node("Cast", ["pictures"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["rgb"], keepdims=0),
        helper.make_node("Gather", ["rgb", "order"], ["means"], axis=1),
        helper.make_node("Mul", ["means", "scale"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("order", TensorProto.INT64, [3], [2, 1, 0]),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.02 / temperature]),
    ]
    pictures = helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["N", SIDE, SIDE, 3])
    answers = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])
    model = helper.make_model(
        helper.make_graph(nodes, "colours", [pictures], [answers], constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, path / "model.onnx")
    manifest = GraphManifest(
        classes=CLASSES,
        preprocessing=Preprocessing(size_px=SIDE, fit="squash"),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        temperature=temperature,
        network="brightest",
        dataset_version=VERSION,
        code_revision=None,
        tracking_run_id=run_id,
        sha256=sha256_of(path / "model.onnx"),
        size_bytes=(path / "model.onnx").stat().st_size,
        opset=18,
        ir_version=10,
        parity=Parity(pictures=12, largest_difference=0.0, label_agreement=1.0, passed=True),
    )
    (path / "graph.json").write_text(json.dumps(manifest.to_json()), encoding="utf-8")
    return path


def write_report(
    path: Path,
    graph: Path,
    dataset: Path,
    *,
    model: str = "colours",
    settings: GateSettings | None = None,
    robustness_pictures: int = 0,
) -> Path:
    """Measure the graph and put its report through the gate."""
    measured = path.with_name(f"{path.name}-measured")
    wanted = EvaluateSettings(bootstrap_samples=100, robustness_pictures=robustness_pictures)
    evaluate(graph, dataset, measured, wanted, model=model)
    gate(graph, dataset, measured, path, settings or GateSettings(), champion=None)
    return path


_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "label": pa.int64(),
        "sha256": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "group": pa.string(),
        "attributes": pa.list_(pa.struct({"key": pa.string(), "value": pa.string()})),
    }
)


def _row(split: str, label: int, number: int) -> dict[str, object]:
    colour = [10 * number] * 3
    colour[2 - label] = 200
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), tuple(colour)).save(file, "PNG")
    key = f"{split}/{CLASSES[label]}/{number}.png"
    image = {"bytes": file.getvalue(), "path": key}
    return {"key": key, "image": image, "label": label, "sha256": "", "width": SIDE, "height": SIDE}

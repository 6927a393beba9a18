"""fp16: a graph that computes in half precision, for a GPU."""

import warnings

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from linnet.errors import GraphError
from linnet.inference.session import OUTPUT
from linnet.release.quantization import as_pinned

# Probabilities and what they are summed from stay in float.
KEPT = ["Softmax"]


def halved(graph: bytes) -> bytes:
    """Return the graph in fp16; its input, its softmax and its probabilities stay what they are.

    Opset, IR version and properties stay those of the graph.

    Raises:
        GraphError: it can't be converted.
    """
    original = onnx.load_model_from_string(graph)
    try:
        with warnings.catch_warnings():
            # What is too small for fp16 becomes its smallest number, with a warning each.
            warnings.simplefilter("ignore")
            model = convert_float_to_float16(
                onnx.load_model_from_string(graph), keep_io_types=True, op_block_list=KEPT
            )
        # The converter adds its casts at the end.
        OnnxModel(model).topological_sort()
        _without_rounding(model)
        as_pinned(model, original, "fp16")
        onnx.checker.check_model(model, full_check=True)
    # The converter raises errors of many families.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise GraphError(
            f"the graph can't be converted to fp16 ({reason[0]}): set export.fp16 to off"
        ) from error
    return bytes(model.SerializeToString())


def _without_rounding(model: onnx.ModelProto) -> None:
    """Have the softmax give the probabilities: the converter casts them to fp16 and back."""
    nodes = model.graph.node
    made_by = {output: node for node in nodes for output in node.output}
    last = made_by[OUTPUT]
    while last.op_type == "Cast":
        nodes.remove(last)
        last = made_by[last.input[0]]
    last.output[0] = OUTPUT

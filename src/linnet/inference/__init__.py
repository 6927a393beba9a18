"""Running graphs on ONNX Runtime: no torch anywhere below this package."""

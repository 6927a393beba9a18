"""From a checkpoint to an immutable release: export to ONNX, bundle, publish."""

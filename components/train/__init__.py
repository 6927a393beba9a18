"""The `train` step."""

"""The `evaluate` step."""

"""The `drift` step."""

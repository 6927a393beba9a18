"""The `release` step."""

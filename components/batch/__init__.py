"""The `batch` step."""

"""The `search` step."""

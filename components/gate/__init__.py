"""The `gate` step."""

"""The `choose` step."""

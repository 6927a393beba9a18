"""The `summarise` step."""

"""The `rollout` step."""

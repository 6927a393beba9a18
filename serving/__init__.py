"""The serving container: its entry point, and the manifests that tell KServe about it."""

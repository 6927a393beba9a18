"""Kubeflow pipelines, one file each; `python -m pipelines.compile` makes them YAML."""

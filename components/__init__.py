"""Kubeflow Pipelines adapters, one folder a step: paths, settings, one library call, the report."""

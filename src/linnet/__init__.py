"""Linnet: from labelled pictures to a model behind a canary on Kubernetes."""

__version__ = "0.1.0"

"""From a dataset to a trained network. Importing this package imports no torch."""

from linnet.training.fit import TrainReport, fit

__all__ = ["TrainReport", "fit"]

"""The baseline beside every model: logistic regression on the features of the untrained network."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from linnet.data.dataset import Dataset
from linnet.data.preprocessing import Preprocessing
from linnet.evaluation.baselines import write_probe
from linnet.inference.predict import predict_split
from linnet.progress import track
from linnet.settings import StageSettings, TrainSettings
from linnet.training.network import Classifier
from linnet.training.stage import (
    Pictures,
    features_of_batch,
    kept_features,
    make_trainer,
    quiet_lightning,
)

log = logging.getLogger(__name__)

# From the most regularised on, until validation's loss grows.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_ITERATIONS = 100

Examples = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class Probe:
    """A frozen network with a logistic regression in place of its classifier."""

    model: Classifier
    preprocessing: Preprocessing
    trainer: pl.Trainer
    regression: Pipeline
    classes: int

    def predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probabilities `[N, classes]` of pictures, uint8 `[N, S, S, 3]`."""
        features = features_of_batch(self.model, pictures, self.trainer)
        return answers_of(self.regression, _flat(features), self.classes)


def linear_probe(
    path: Path,
    dataset: Dataset,
    pictures: Pictures,
    model: Classifier,
    settings: TrainSettings,
    *,
    cache: Path,
) -> None:
    """Write what a probe on this network answers to the test split.

    It learns from at most `probe_pictures` training pictures, and from as many of validation how
    much to be regularised. Without test pictures nothing is written, nor where all pictures drawn
    are of one class or the network has no features before its classifier.
    """
    if not settings.probe_pictures or not dataset.size("test"):
        return
    with quiet_lightning():
        trainer = make_trainer(StageSettings(), settings, path.parent, None)
        model.to(trainer.strategy.root_device).eval()
        try:
            train = _examples("train", pictures, model, trainer, settings, cache)
            val = _examples("val", pictures, model, trainer, settings, cache)
        except (AttributeError, RuntimeError, TypeError, NotImplementedError) as error:
            log.warning("no linear probe: %s has no features (%s)", settings.network, error)
            return
        if len(np.unique(train[1])) < 2:
            log.warning("no linear probe: %d training pictures show one class", len(train[1]))
            return
        probe = Probe(
            model=model,
            preprocessing=Preprocessing(settings.size_px, settings.fit),
            trainer=trainer,
            regression=learnt(train, val, pictures.classes),
            classes=pictures.classes,
        )
        answers = predict_split(probe, dataset, "test", batch_size=settings.batch_size)
    write_probe(path, answers, _words(settings, *train[0].shape))


def learnt(train: Examples, val: Examples, classes: int) -> Pipeline:
    """Return the regression of features on labels that is best on validation."""
    least, best = np.inf, None
    for strength in STRENGTHS:
        regression = make_pipeline(
            StandardScaler(), LogisticRegression(C=strength, max_iter=_ITERATIONS)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.fit(*train)
        of_truth = answers_of(regression, val[0], classes)[np.arange(len(val[1])), val[1]]
        loss = -np.log(np.maximum(of_truth, np.finfo(np.float32).tiny)).mean()
        if loss >= least:
            break
        least, best = loss, regression
    return best


def answers_of(
    regression: Pipeline, features: NDArray[np.float32], classes: int
) -> NDArray[np.float32]:
    """Return probabilities `[N, classes]`, 0 for a class that the regression has not seen."""
    answers = np.zeros((len(features), classes), np.float32)
    answers[:, regression.classes_] = regression.predict_proba(features)
    return answers


def _examples(
    split: Literal["train", "val"],
    pictures: Pictures,
    model: Classifier,
    trainer: pl.Trainer,
    settings: TrainSettings,
    cache: Path,
) -> Examples:
    """Return features and labels of some pictures of a split, drawn at random, in its order."""
    of, labels = (
        (pictures.train, pictures.train_labels)
        if split == "train"
        else (pictures.val, pictures.val_labels)
    )
    count = min(len(labels), settings.probe_pictures)
    chosen = np.sort(np.random.default_rng(settings.seed).permutation(len(labels))[:count])
    kept = kept_features(split, model, pictures, trainer, settings, cache)
    if kept is not None:
        return _flat(kept[chosen]), labels[chosen]
    batches = np.array_split(chosen, -(-count // settings.batch_size))
    found = [
        features_of_batch(model, of[rows], trainer)
        for rows in track(batches, f"Features of {split} pictures for the probe", len(batches))
    ]
    return _flat(np.concatenate(found)), labels[chosen]


def _flat(features: NDArray[np.float32]) -> NDArray[np.float32]:
    return features.reshape(len(features), -1)


def _words(settings: TrainSettings, pictures: int, features: int) -> str:
    weights = {
        "hub": "timm's weights",
        "none": "weights drawn at random, so these are features of its form alone",
    }.get(settings.weights, f"the weights of {Path(settings.weights).name}")
    return (
        f"logistic regression on the {features:,} features of {settings.network} before training, "
        f"with {weights}; learnt from {pictures:,} training pictures"
    )

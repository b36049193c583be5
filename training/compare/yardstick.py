"""What samples are worth beside real pictures, in the features of a classifier that knows their classes.

In: the test pictures and a classifier trained on such. Out: `Fidelity` of any samples; `training.compare.fidelity` has
the formulas and their sources.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.compare.classifier import Classifier, describe
from training.compare.fidelity import frechet_distance, precision_and_recall, spread_within_classes
from training.config import ConfigError, RunConfig
from training.data import DataSet, to_unit


@dataclass(frozen=True)
class Fidelity:
    """Of samples, in the classifier's features; None where a system takes no label."""

    frechet: float
    precision: float
    recall: float
    spread: float  # within a class, as a part of the spread of real pictures
    class_agreement: float | None  # part of conditional samples that the classifier puts in the class asked for


def yardstick_count(config: RunConfig, data: DataSet) -> int:
    """How many pictures are measured of each system, of the test split and of the training split."""
    return min(config.compare.samples, len(data.test), len(data.train))


class Yardstick:
    """Real pictures as the classifier sees them: `count` of the test split, and as many of training for comparison.

    Both are drawn at random, the same ones at each call: MNIST's first 5,000 test digits are easier than its last.

    Raises:
        ConfigError: the classifier describes all test pictures of a class alike, so that it measures nothing.
    """

    def __init__(self, config: RunConfig, data: DataSet, classifier: Classifier) -> None:
        self._classifier, self._neighbours = classifier, config.compare.neighbours
        self.count = yardstick_count(config, data)
        assert isinstance(data.test.images, Tensor) and isinstance(data.train.images, Tensor)
        features, seen = describe(classifier, to_unit(data.test.images))
        self.accuracy = float((seen == data.test.labels).double().mean())
        generator = torch.Generator().manual_seed(config.trainer.seed)
        test, train = (torch.randperm(len(one), generator=generator)[: self.count] for one in (data.test, data.train))
        self.labels = data.test.labels[test]
        self._features = features[test]
        self._spread = spread_within_classes(self._features, seen[test])
        if self._spread == 0:  # as of units that are all dead
            raise ConfigError(
                f"the classifier, of {self.accuracy:.1%} accuracy, sees no difference between test pictures of a class "
                "and cannot measure samples: lower compare.classifier.learning_rate, or bring test pictures that "
                "differ, and choose another --out"
            )
        self.real = self.measure(to_unit(data.train.images[train]), data.train.labels[train])

    def measure(self, samples: Tensor, labels: Tensor | None) -> Fidelity:
        """Samples (N,C,H,W) in [0,1] and the classes asked for, or None."""
        features, seen = describe(self._classifier, samples)
        precision, recall = precision_and_recall(self._features, features, self._neighbours)
        return Fidelity(
            frechet=frechet_distance(self._features, features),
            precision=precision,
            recall=recall,
            spread=spread_within_classes(features, seen) / self._spread,
            class_agreement=None if labels is None else float((seen == labels).double().mean()),
        )

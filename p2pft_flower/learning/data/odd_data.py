"""Warnings of data that can be trained on, but are seldom meant so: one class, patients on both sides."""

from __future__ import annotations

import logging

from p2pft_flower.config import LearningConfig
from p2pft_flower.learning.data.by_column import Columns
from p2pft_flower.learning.data.label_arrays import check_several
from p2pft_flower.learning.data.names import in_order, some_names
from p2pft_flower.learning.data.patients import named_patients, patient_column
from p2pft_flower.learning.data.splits import Dataset

__all__ = ["check_whole", "warn_of_shared_patients"]

log = logging.getLogger(__name__)


def check_whole(config: LearningConfig, data: Dataset) -> None:
    """Refuse settings that do not fit the labels of ``data``, and warn of what is seldom meant.

    Parameters
    ----------
    config : LearningConfig
        The settings.
    data : Dataset
        The images of all peers here, with those that they are scored on.

    Raises
    ------
    ConfigError
        As :func:`~p2pft_flower.learning.data.label_arrays.check_several` does.
    """
    check_several(config, several=data.several_labels)
    if len(data.classes) == 1 and not data.several_labels:
        log.warning(
            "dataset = %s: all images are of one class, %r, so there is nothing to learn, and every "
            "accuracy is 1",
            config.dataset,
            data.classes[0],
        )
    if not config.sited:  # else each source was looked at by itself: its patients are its own
        warn_of_shared_patients(config.dataset, data.train.columns, data.test.columns)


def warn_of_shared_patients(called: str, train: Columns, test: Columns) -> None:
    """Warn of patients of whom there are images for training and for the test, by a column that names them.

    Parameters
    ----------
    called : str
        The dataset, for the message.
    train, test : mapping of str to array of str
        The columns of the two splits; nothing is told without a column such as ``patient`` or ``subject_id``.
    """
    name = patient_column({column: train[column] for column in train if column in test})
    if not name:
        return
    trained, tested = (named_patients({name: columns[name]}) for columns in (train, test))
    if shared := tested & trained:
        log.warning(
            "%s: %d OF %d TEST PATIENTS HAVE TRAINING IMAGES too, by the column %r (%s): scores on them say "
            "little of new patients; have all images of a patient on one side",
            called,
            len(shared),
            len(tested),
            name,
            some_names(in_order(shared)),
        )

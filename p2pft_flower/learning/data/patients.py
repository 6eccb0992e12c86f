"""Whose image each is: the column of a source that names patients, by how it is called."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from p2pft_flower.learning.data.by_column import Columns, column_of
from p2pft_flower.learning.data.names import is_missing

__all__ = ["PATIENT", "deals_patients", "named_patients", "patient_column", "patients_of"]

PATIENT = "patient"
"""The column of the patients where several sources are one."""

_WHO = (PATIENT, "subject", "participant")
"""Words for the person whom an image shows, as a column is called, perhaps with a word of :data:`_NUMBER`."""

_NAME = "name"
"""The word of columns of names, which two patients may share, and which are the same for all once removed."""

_NUMBER = ("", "id", "no", "nr", "number", _NAME)


def patient_column(columns: Columns) -> str:
    """Return the column that names patients, as ``patient`` and ``subject_id`` do; empty: none does.

    Of several it is the one that tells the patient of the most images, and one of names only if no other
    tells as many; else the first.
    """
    found = [name for name in columns if _names_patients(name)]
    if len(found) < 2:
        return "".join(found)
    told = {name: sum(not is_missing(str(value)) for value in columns[name]) for name in found}
    return max(found, key=lambda name: (told[name], not name.lower().endswith(_NAME)))


def deals_patients(partition: str) -> bool:
    """Return whether ``partition`` is by a column that names patients, so that each peer is a patient."""
    return _names_patients(column_of(partition))


def patients_of(columns: Columns) -> npt.NDArray[np.object_] | None:
    """Return the patient of each image, (N,) of str, empty where it is not told; None: no column tells it."""
    if not (column := patient_column(columns)):
        return None
    told = (str(value) for value in columns[column])
    return np.array(["" if is_missing(patient) else patient for patient in told], dtype=object)


def named_patients(columns: Columns) -> set[str]:
    """Return the patients that :func:`patients_of` finds."""
    found = patients_of(columns)
    return set() if found is None else set(found) - {""}


def _names_patients(column: str) -> bool:
    bare = "".join(filter(str.isalnum, column.lower()))
    return any(bare == who + number for who in _WHO for number in _NUMBER)

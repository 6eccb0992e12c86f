#!/usr/bin/env bash
# pydicom 3.0.2: in an enhanced (multi-frame) object, rescale slope and intercept and the window lie in functional groups,
# shared or per frame (DICOM PS3.3 C.7.6.16.2.9 and .10), not at the top of the dataset. apply_modality_lut and
# apply_voi_lut look at the top only, and return the stored values as they are: no Hounsfield units, no window, no warning.
# The same values in a classic object are converted. Who feeds files of both kinds to a model trains on two scales.
#
# Expected: -1000, -998, … of either object. Seen: 0, 1, … of the enhanced one.
# Exit 0 while it does so, 1 when that has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pydicom==3.0.2 numpy==2.3.5
"$work/venv/bin/python" -W error - <<'PY'
import sys

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut


def image(*, enhanced):
    """Return two frames of 2 × 2 stored values 0 to 7, of which 2 x - 1000 is the value in Hounsfield units."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.SOPClassUID = pydicom.uid.EnhancedCTImageStorage if enhanced else pydicom.uid.CTImageStorage
    made.Rows, made.Columns, made.NumberOfFrames, made.SamplesPerPixel = 2, 2, 2, 1
    made.PhotometricInterpretation, made.PixelRepresentation = "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 16, 15
    made.PixelData = np.arange(8, dtype=np.uint16).tobytes()
    rescale, window = Dataset(), Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 2, -1000, "HU"
    window.WindowCenter, window.WindowWidth = -992, 10
    if enhanced:
        shared = Dataset()
        shared.PixelValueTransformationSequence = [rescale]
        shared.FrameVOILUTSequence = [window]
        made.SharedFunctionalGroupsSequence = [shared]
        made.PerFrameFunctionalGroupsSequence = [Dataset(), Dataset()]
    else:
        made.update(rescale)
        made.update(window)
    return made


print("pydicom", pydicom.__version__)
classic, enhanced = image(enhanced=False), image(enhanced=True)
classic_units = apply_modality_lut(classic.pixel_array, classic).ravel()
seen = apply_modality_lut(enhanced.pixel_array, enhanced).ravel()
shown = apply_voi_lut(enhanced.pixel_array, enhanced).ravel()
print("classic, Hounsfield units ", classic_units.tolist())
print("enhanced, Hounsfield units", seen.tolist())
print("enhanced, window applied  ", shown.tolist())
stored = list(range(8))
if classic_units.tolist() != [2 * x - 1000 for x in stored] or seen.tolist() != stored or shown.tolist() != stored:
    sys.exit("this has changed")
PY

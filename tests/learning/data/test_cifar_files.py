"""CIFAR's pickles are read as arrays, lists and texts; what asks for other code is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torchvision

from p2pft_flower.errors import DataError
from p2pft_flower.learning.data.cifar_files import read_cifar
from p2pft_flower.learning.data.datasets import load_dataset
from p2pft_flower.learning.data.torchvision_sets import SOURCES

from .test_torchvision_sets import write_cifar


class Hostile:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_a_file_that_asks_for_code_is_refused_and_the_code_is_not_run(tmp_path):
    folder = write_cifar(tmp_path, kind=10)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": Hostile(tmp_path / "made"), "labels": [0]}))
    with pytest.raises(DataError, match=r"it asks for io.open, and arrays only are read from it"):
        load_dataset("cifar10", str(tmp_path), verify=False)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_are_read_whatever_pickles_protocol_the_file_has(protocol, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    (tmp_path / "a").write_bytes(pickle.dumps({"data": pixels, "fine_labels": [7, 3]}, protocol))
    found, labels = read_cifar(tmp_path / "a", tmp_path / "a")
    np.testing.assert_array_equal(found[3], pixels[1].reshape(3, 32, 32).transpose(1, 2, 0))
    assert labels.tolist() == [7, 3, 7, 3]


@pytest.mark.parametrize(("name", "reader"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_the_official_md5_sums_are_torchvisions(name, reader):
    theirs = getattr(torchvision.datasets, reader)
    listed = [*theirs.train_list, *theirs.test_list, [theirs.meta["filename"], theirs.meta["md5"]]]
    assert SOURCES[name].md5 == dict(listed)

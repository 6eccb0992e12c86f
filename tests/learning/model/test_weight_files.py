"""Files of weights: read by their content whatever they are called, or refused as what they are."""

from __future__ import annotations

import gzip
import json
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.model.models import create_model
from p2pft_flower.learning.model.weight_files import flatten
from tests.learning.model.weight_sources import (
    ONES,
    changed,
    deep,
    has,
    state_of,
    write,
)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "bin", "npz", ""])
@pytest.mark.parametrize("kind", ["safetensors", "torch", "torch before 1.6"])
def test_what_a_file_is_called_does_not_matter(kind, suffix, tmp_path):
    state, file = state_of("small_vit"), tmp_path / f"weights.{suffix}"
    if kind == "safetensors":
        save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "torch")
    assert has(create_model("small_vit", str(file), 3, seed=0), state)


def torch_bytes(content, path, **options):
    torch.save(content, path, **options)
    return path.read_bytes()


def safetensors_bytes(path):
    save_file(state_of("small_vit"), path)
    return path.read_bytes()


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return path.read_bytes()


def scripted(path):
    with pytest.warns(Warning, match="deprecated"):
        torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(path)
    return path.read_bytes()


def objects(path):
    with path.open("wb") as opened:
        np.savez(opened, a=np.array([{}], dtype=object))
    return path.read_bytes()


def within_itself():
    content = {"model": {"a": torch.ones(2)}}
    content["model"]["again"] = [content]
    return content


def array(path):
    with path.open("wb") as opened:
        np.save(opened, np.ones(3))
    return path.read_bytes()


NO_WEIGHTS = {
    "empty": (lambda _: b"", "is empty"),
    "a web page": (lambda _: b"\n<!DOCTYPE html><title>404</title>", "web page"),
    "XML": (lambda _: b"<?xml version='1.0'?><Error/>", "web page"),
    "a Git-LFS pointer": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "Git-LFS pointer",
    ),
    "JSON": (lambda _: json.dumps({"message": "not found"}).encode(), "JSON"),
    "an index": (lambda _: json.dumps({"weight_map": {}}).encode(), "lie in several files"),
    "a text": (lambda _: "keine Gewichte – nein".encode() * 60, "is a text"),
    "zeros": (lambda _: bytes(4000), "zeros"),
    "noise": (lambda _: np.random.default_rng(0).bytes(4000), "of no kind that is read"),
    "gzip": (lambda p: gzip.compress(torch_bytes({"a": torch.ones(3)}, p)), "gzip"),
    "HDF5": (lambda _: b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "a pickle": (lambda _: pickle.dumps({"a": 1}), "none of torch's"),
    "a whole module": (lambda p: torch_bytes(torch.nn.Linear(2, 2), p), "whole pickled module"),
    "a whole module before 1.6": (
        lambda p: torch_bytes(torch.nn.Linear(2, 2), p, _use_new_zipfile_serialization=False),
        "whole pickled module",
    ),
    "code": (lambda p: torch_bytes({"a": np.random.default_rng}, p), "weights only"),
    "TorchScript": (scripted, "TorchScript"),
    "no names": (lambda p: torch_bytes([torch.ones(2)], p), "holds a list"),
    "one tensor": (lambda p: torch_bytes(torch.ones(2), p), "single tensor"),
    "no tensors": (lambda p: torch_bytes({"epoch": 3}, p), "has no tensor"),
    "no tensors, safetensors": (lambda p: save_file({}, p) or p.read_bytes(), "has no tensor, but nothing"),
    "tensors without values": (
        lambda p: torch_bytes({"a": {"b": torch.ones(2, device="meta")}}, p),
        r"a tensor without values, 'a\.b' \(on the device meta",
    ),
    "a container in itself": (lambda p: torch_bytes(within_itself(), p), r"in itself, at 'model\.again\.0'"),
    "too many containers": (lambda p: torch_bytes(deep(200), p), "more than 100 containers in one another"),
    "a truncated file of torch": (lambda p: torch_bytes(state_of("small_vit"), p)[:-100], "truncated"),
    "a truncated one before 1.6": (
        lambda p: torch_bytes({"a": torch.ones(99)}, p, _use_new_zipfile_serialization=False)[:-9],
        "truncated",
    ),
    "truncated safetensors": (lambda p: safetensors_bytes(p)[:-100], "truncated safetensors"),
    "safetensors without tensors": (lambda p: safetensors_bytes(p)[:100], "truncated safetensors"),
    "a zip archive": (zipped, "zip archive of other files"),
    "NumPy objects": (objects, "pickles"),
    "an array": (array, "single NumPy array"),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_a_file_without_weights_is_refused_as_what_it_is(kind, suffix, tmp_path):
    make, words = NO_WEIGHTS[kind]
    file = tmp_path / f"odd.{suffix}"
    file.write_bytes(make(tmp_path / "raw"))
    with pytest.raises(DataError, match=words) as refused:
        create_model("small_vit", str(file), 3, seed=0)
    assert f"could not be loaded from {file}: it " in str(refused.value)
    assert "=False" not in str(refused.value)  # no advice to read code


def test_a_file_below_the_folder_of_the_process_may_be_named_by_itself(tmp_path, monkeypatch):
    torch.save(state_of("small_vit"), tmp_path / "w.pth")
    monkeypatch.chdir(tmp_path)
    assert has(create_model("small_vit", "w.pth", 3, seed=0), state_of("small_vit"))
    with pytest.raises(
        ConfigError, match=r"weights = 'v\.pth': choose pretrained, none, or the absolute path"
    ):
        create_model("small_vit", "v.pth", 3, seed=0)


def test_a_folder_is_refused_with_what_is_in_it(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"it is a folder, with model\.safetensors in it"):
        create_model("small_vit", str(tmp_path), 3, seed=0)


def test_checkpoints_are_read_however_deep_they_are_nested():
    levels = sys.getrecursionlimit() * 3
    with pytest.raises(DataError, match="more than 100 containers"):
        flatten(deep(levels))
    shared = {"a": torch.ones(2)}
    assert list(flatten({"one": shared, "two": {"three": shared, "": [shared]}, None: deep(60)})) == [
        *("one.a", "two.three.a", "two..0.a", "None" + ".a" * 61)
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of such tensors
@pytest.mark.parametrize("kind", ["sparse", "quantised"])
def test_tensors_of_other_layouts_are_refused(kind, tmp_path):
    other = ONES.to_sparse() if kind == "sparse" else torch.quantize_per_tensor(ONES, 0.1, 0, torch.qint8)
    file = write(tmp_path / "odd.bin", changed(state_of("small_vit"), "norm.weight", other))
    with pytest.raises(DataError, match=rf"its tensor 'norm\.weight' is {kind}"):
        create_model("small_vit", file, 3, seed=0)

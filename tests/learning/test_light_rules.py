"""What is told of models, datasets and values without importing timm and torchvision is what these say."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings
from pathlib import Path

import pytest
import timm
import timm.models
from timm.models import list_modules
from torchvision import datasets as torchvision

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data import augmenting
from p2pft_flower.learning.data.augmenting import check_augment
from p2pft_flower.learning.data.dataset_names import (
    BUILT_IN,
    TORCHVISION,
    check_dataset_name,
    classes_of,
    require_parts,
)
from p2pft_flower.learning.data.datasets import DATASETS, load_dataset
from p2pft_flower.learning.data.torchvision_folders import FOLDERS
from p2pft_flower.learning.data.torchvision_sets import SOURCES
from p2pft_flower.learning.model import devices, timm_names
from p2pft_flower.learning.model.model_names import EMBEDDED, TIMM_MODULES, check_model_name
from p2pft_flower.learning.model.models import MODELS
from p2pft_flower.learning.model.structure import CLASSES
from p2pft_flower.learning.settings import check_learning

from .conftest import write_images


@pytest.fixture
def fresh():
    """Names read anew, and forgotten again."""
    timm_names.timm_names.cache_clear()
    yield timm_names.timm_names
    timm_names.timm_names.cache_clear()


def registered():
    own = [module for module in list_modules() if hasattr(timm.models, module)]  # tests register others
    return {name: module for module in own for name in timm.list_models(module=module)}


def test_the_names_read_from_timms_files_are_those_it_registers(fresh):
    found = fresh().modules
    assert {name: found.get(name) for name in registered()} == registered()
    assert all(timm.is_model(name) for name in found)
    assert "vit_tiny_patch16_224_in21k" in found  # deprecated ones too


def test_every_name_with_a_tag_that_timm_has_passes_and_another_tag_does_not(fresh):
    modules = fresh().modules
    supported = [
        name for name in timm.list_pretrained() if modules.get(name.partition(".")[0]) in TIMM_MODULES
    ]
    assert len(supported) > 100
    for name in supported:
        check_model_name(name)
    read = [name for name in supported if name.partition(".")[0] in fresh().tags]
    assert len(read) > 0.9 * len(supported)
    with pytest.raises(ConfigError, match=r"timm has no weights tagged 'in22k' .*; choose one of fb_in1k"):
        check_model_name("deit_tiny_patch16_224.in22k")


def test_where_timms_files_do_not_show_the_names_timm_is_asked(fresh, monkeypatch):
    monkeypatch.setattr(timm_names, "_read", lambda _: timm_names.TimmNames({}, {}, {}))
    assert fresh().modules.items() >= registered().items()
    assert "augreg_in21k" in fresh().tags["vit_tiny_patch16_224"]


def test_the_modules_that_can_hold_a_supported_model_are_all_that_use_one():
    def uses(module):
        return any(
            inspect.isclass(kind) and getattr(kind, "forward_features", None) is one.forward_features
            for kind in vars(module).values()
            for one in CLASSES
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # timm's modules that have moved
        modules = [
            importlib.import_module(f"timm.models.{module.name}")
            for module in pkgutil.iter_modules(timm.models.__path__)
        ]
    using = {module.__name__.rpartition(".")[2] for module in modules if uses(module)}
    assert using & set(list_modules()) == set(TIMM_MODULES)


def test_the_own_models_and_datasets_are_those_that_there_are():
    assert set(EMBEDDED) == set(MODELS)
    assert set(BUILT_IN) == set(DATASETS)
    assert set(TORCHVISION) == set(SOURCES) == set(FOLDERS)


@pytest.mark.parametrize(("name", "reader"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifars_files_are_those_that_torchvision_reads(name, reader):
    kind = getattr(torchvision, reader)
    files = [file for file, _ in [*kind.train_list, *kind.test_list]]
    assert FOLDERS[name].name == kind.base_folder
    assert sorted(FOLDERS[name].needs) == sorted([*files, kind.meta["filename"]])


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_files_with_an_official_sum_are_among_those_that_are_needed(name):
    assert set(SOURCES[name].md5) <= set(FOLDERS[name].needs)


def test_classes_are_known_before_images_are_read(tmp_path):
    assert classes_of("digits") == load_dataset("digits").classes
    write_images(tmp_path, {"train": 1, "test": 1}, dict.fromkeys(("10", "2", "1"), (9, 9, 9)))
    (tmp_path / "train" / ".hidden").mkdir()
    name = f"folder:{tmp_path}"
    assert classes_of(name) == load_dataset(name).classes == ("1", "2", "10")
    assert classes_of("cifar10") is None  # copies with fewer classes are read, too


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vit_tinny", "'vit_tiny_patch16_224'"),
        ("deit_base_patch16", "'deit_base_patch16_"),
        ("swin_bse_patch4_window7_224", "'swin_base_patch4_window7_224'"),
        ("glyph_vit8", "'glyph_vit_8'"),
    ],
)
def test_an_unknown_model_is_refused_with_names_of_models_that_can_be_used(name, near):
    with pytest.raises(ConfigError, match=rf"^model = '{name}' is unknown; choose .*; did you mean .*{near}"):
        check_model_name(name)


@pytest.mark.parametrize(
    "augment", ["none", "basic", "rand-m9-mstd0.5-inc1", "augmix-m3-w3", "v0", "3a-mstd0.5"]
)
def test_augmentations_that_timm_has_pass(augment):
    check_augment(augment)


def test_where_timms_reading_cannot_be_had_alone_the_form_is_looked_at(monkeypatch):
    monkeypatch.setattr(augmenting, "_timms_module", lambda: None)
    check_augment("rnad-m9")  # the run will refuse it
    with pytest.raises(ConfigError, match="'mhigh' is no setting of it"):
        check_augment("rand-mhigh")


@pytest.mark.parametrize(
    ("device", "system", "says"),
    [
        ("mps", "Linux", "only Apple's machines have it"),
        ("cuda", "Darwin", "Apple's machines have none"),
        ("cuda", "Linux", "there is no GPU in /dev"),
    ],
)
def test_a_device_that_a_machine_cannot_have_is_refused_with_the_reason(device, system, says, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr(devices, "_built_without_gpus", lambda: False)
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    with pytest.raises(ConfigError, match=f"device = '{device}': torch finds none on this machine .{says}"):
        devices.check_device(device)


def test_a_gpu_that_is_hidden_or_that_torch_cannot_use_is_refused(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path("/dev/nvidia0")]))
    monkeypatch.setattr(devices, "_built_without_gpus", lambda: False)
    devices.check_device("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES = '-1' hides all GPUs"):
        devices.check_device("cuda")
    monkeypatch.setattr(devices, "_built_without_gpus", lambda: True)
    with pytest.raises(ConfigError, match="torch is installed without support of GPUs"):
        devices.check_device("cuda")


@pytest.mark.parametrize(
    ("cuda", "hip", "without"), [("None", "None", True), ("'13.0'", "None", False), ("None", "'6.2'", False)]
)
def test_what_torch_was_built_for_is_read_from_its_version(cuda, hip, without, tmp_path, monkeypatch):
    text = f"from typing import Optional\ncuda: Optional[str] = {cuda}\nhip: Optional[str] = {hip}\n"
    (tmp_path / "version.py").write_text(text)
    spec = importlib.util.spec_from_file_location("torch", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    assert devices._built_without_gpus() is without


@pytest.mark.parametrize("dataset", ["digits", "folder:/data", "folder:/data-{peer}", "folder:birds"])
def test_a_data_dir_that_nothing_reads_is_refused(dataset):
    with pytest.raises(ConfigError, match=rf"^data-dir = '/x': dataset = '{dataset}' does not read it; "):
        check_learning(LearningConfig(dataset=dataset, data_dir="/x"), 4, pooled=False)


@pytest.mark.parametrize("dataset", [*TORCHVISION, "my_module:my_dataset", "/a/file.py:my_dataset"])
def test_a_data_dir_that_is_read_passes(dataset):
    check_learning(LearningConfig(dataset=dataset, data_dir="/x"), 4, pooled=False)


def test_a_dataset_that_is_nearly_one_is_answered_with_what_was_meant(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'oxford-iiit-pet'"):
        check_dataset_name("pets")
    with pytest.raises(ConfigError, match=f"did you mean 'folder:{tmp_path}'"):
        check_dataset_name(str(tmp_path))
    for site in ("site-2", "site-10"):
        (tmp_path / site / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"it holds site-2, site-10: is it folder:.*\{peer\}"):
        require_parts(str(tmp_path))

"""The run-config: keys, defaults, and what is refused."""

from __future__ import annotations

import re
import tomllib
from dataclasses import FrozenInstanceError, dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pft_flower.algorithms.objective import OBJECTIVES
from p2pft_flower.config import (
    CHOICES,
    DATA_CHANGED,
    TRANSPORTS,
    LearningConfig,
    MethodConfig,
    RunConfig,
    RuntimeConfig,
    config_keys,
)
from p2pft_flower.config.runtime import ON_FAILURE
from p2pft_flower.errors import ConfigError
from p2pft_flower.resources import resource_dir
from tools import app_config
from tools.keys import CONCERNS, keys_of, plain


def test_the_app_carries_every_key_with_the_packages_default_and_type():
    project = tomllib.loads((resource_dir("apps") / "p2pft" / "pyproject.toml").read_text())
    shipped = project["tool"]["flwr"]["app"]["config"]
    assert shipped == config_keys()
    # flwr --run-config keeps the type that the app's file has: 0.0 == 0, but 0 would refuse 0.9.
    assert {k: type(v) for k, v in shipped.items()} == {k: type(v) for k, v in config_keys().items()}


def test_the_apps_keys_are_what_the_dataclasses_make_of_it():
    """Each name, default and comment; ``python -m tools.app_config`` writes them."""
    file = resource_dir("apps") / "p2pft" / "pyproject.toml"
    assert app_config.with_keys(file.read_text(encoding="utf-8")) == file.read_text(encoding="utf-8")


def test_every_key_of_the_app_has_its_own_meaning_as_a_comment():
    lines = (resource_dir("apps") / "p2pft" / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    said: dict[str, str] = {}
    comment: list[str] = []
    for line in filter(None, lines[lines.index("[tool.flwr.app.config]") + 1 :]):
        if line.startswith("#"):
            comment = [] if line.startswith("# ---") else [*comment, line.removeprefix("# ")]
            continue
        said[line.partition(" = ")[0]] = " ".join(comment)
        comment = []
    keys = [key for concern in CONCERNS for key in keys_of(concern)]
    assert said == {k.name: " ".join(filter(None, [" | ".join(k.choices), plain(k.text)])) for k in keys}
    assert all(said.values())
    assert not [text for text in said.values() if "`" in text]


def test_the_few_values_that_a_docstring_names_are_those_that_are_taken():
    named = {key.name: key.choices for concern in CONCERNS for key in keys_of(concern) if key.choices}
    taken = {key.replace("_", "-"): tuple(filter(None, choices)) for key, choices in CHOICES.items()}
    taken |= {"objective": OBJECTIVES, "transport": TRANSPORTS, "on-failure": ON_FAILURE}
    taken |= {"data-changed": DATA_CHANGED}
    assert {key: set(choices) for key, choices in named.items()} == {k: set(v) for k, v in taken.items()}


def test_a_docstring_without_one_of_the_fields_is_refused():
    @dataclass
    class Concern:
        """A concern.

        Attributes
        ----------
        one : int
            The first.
        """

        one: int = 1
        two: int = 2

    with pytest.raises(ValueError, match=r"Concern: its docstring has \['one'\]"):
        keys_of(Concern)


def test_keys_are_kebab_case_and_no_two_concerns_share_one():
    concerns = (MethodConfig, LearningConfig, RuntimeConfig)
    assert len(config_keys()) == sum(len(c.__dataclass_fields__) for c in concerns)
    assert all(key == key.lower() and "_" not in key for key in config_keys())


def test_an_empty_mapping_is_the_default():
    assert RunConfig.from_mapping({}) == RunConfig()


OTHER = {
    "algorithm": "dgd",
    "learning-rate": 0.5,
    "schedule": "step:10:0.5",
    "momentum": 0.9,
    "weight-decay": 1e-3,
    "objective": "examples",
    "local-epochs": 3,
    "strategy-options": "proximal-mu=0.1",
    "algorithm-options": "local-steps=8",
    "codec": "q4",
    "codec-step": 0.7,
    "data-changed": "accept",
    "max-megapixels": 250.0,
    "schedule-graph": "base:2",
    "pipelined": True,
    "problem": "my_module:my_problem",
    "model": "vit_tiny_patch16_224",
    "weights": "none",
    "image-size": 96,
    "crop-pct": 0.9,
    "interpolation": "bicubic",
    "mean": "0.485,0.456,0.406",
    "std": "0.5",
    "tune": "head",
    "device": "cpu",
    "cache": False,
    "cache-dtype": "float32",
    "trunk-dtype": "bfloat16",
    "head": "text",
    "text-embeddings": "/names.npz",
    "text-tower": "ViT-B-32:openai",
    "prompts": "a sketch of a {}",
    "class-names": "/names.json",
    "dataset": "folder:/pictures",
    "data-dir": "/data",
    "download": True,
    "verify": False,
    "validation": 0.2,
    "keep": "best:loss",
    "evaluate-on": 90,
    "shots": 5,
    "loss": "bce",
    "class-weights": "balanced",
    "partition": "iid",
    "stream": True,
    "pixel-range": "-1000:400",
    "dicom-window": "40:400",
    "bad-images": "skip",
    "augment": "basic",
    "batch-size": 7,
    "batched": "true",
    "dp-clip": 1.5,
    "dp-noise": 0.7,
    "dp-delta": 1e-5,
    "seed": 11,
    "topology": "ring:8",
    "epochs": 2,
    "iterations": 30,
    "evaluate-every": 5,
    "transport": "grpc",
    "threads": 2,
    "meet-timeout": 1.5,
    "peer-timeout": 2.5,
    "on-failure": "wait",
    "rejoin-deadline": 50.0,
    "hang-timeout": 100.0,
    "run-timeout": 3600.0,
    "name": "pets-lora",
    "output-dir": "/results",
    "checkpoint-every": 7,
    "checkpoints-kept": 3,
    "resume": "/results/earlier",
    "extend": True,
    "preflight-only": True,
    "observer-address": "office.example:9100",
    "min-peers": 3,
    "predictions": True,
    "tensorboard": True,
    "callbacks": "my_module:MyCallback",
}


def test_every_key_reaches_its_field_and_comes_back():
    assert OTHER.keys() == config_keys().keys()
    for key, value in OTHER.items():
        assert value != config_keys()[key]
        assert RunConfig.from_mapping({key: value}).to_mapping() == config_keys() | {key: value}
    config = RunConfig.from_mapping(OTHER)
    assert config.to_mapping() == OTHER
    assert RunConfig.from_mapping(config.to_mapping()) == config


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "learning-rate": st.floats(1e-9, 1e3),
            "momentum": st.floats(0, 1, exclude_max=True),
            "seed": st.integers(0, 2**63 - 1),
            "batch-size": st.integers(1, 10**6),
            "peer-timeout": st.floats(1e-3, 1e6),
            "data-dir": st.text(),
        },
    )
)
def test_a_config_survives_its_mapping(values):
    config = RunConfig.from_mapping(values)
    assert RunConfig.from_mapping(config.to_mapping()) == config
    assert config.to_mapping() == config_keys() | values


def test_a_whole_number_will_do_for_a_number_and_becomes_one():
    config = RunConfig.from_mapping({"learning-rate": 1, "peer-timeout": 30})
    assert (config.method.learning_rate, config.runtime.peer_timeout) == (1.0, 30.0)
    assert isinstance(config.method.learning_rate, float)
    assert isinstance(config.runtime.peer_timeout, float)


@pytest.mark.parametrize(("given", "kept"), [(True, "true"), (False, "false"), ("auto", "auto")])
def test_a_key_that_is_true_false_or_something_else_takes_tomls_booleans(given, kept):
    assert RunConfig.from_mapping({"batched": given}).learning.batched == kept


def test_iterations_may_stand_in_for_epochs():
    assert RunConfig.from_mapping({"epochs": 0, "iterations": 3}).runtime.iterations == 3


def test_a_config_cannot_be_changed_after_it_was_checked():
    with pytest.raises(FrozenInstanceError):
        RunConfig().method.momentum = 2.0


@pytest.mark.parametrize(
    ("key", "close"),
    [
        ("learning_rate", "learning-rate"),
        ("learningrate", "learning-rate"),
        ("batchsize", "batch-size"),
        ("topolgy", "topology"),
        ("epoch", "epochs"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(key, close):
    with pytest.raises(
        ConfigError, match=rf"^unknown run-config key '{key}': did you mean '{close}'\? The keys are"
    ):
        RunConfig.from_mapping({key: 1})


def test_a_key_like_no_other_is_refused_with_all_keys():
    with pytest.raises(
        ConfigError, match=r"^unknown run-config key 'xyzzy': The keys are algorithm, .*min-peers$"
    ):
        RunConfig.from_mapping({"xyzzy": 1})


WRONG = [
    ("learning-rate", 0.0, "must be a positive number"),
    ("learning-rate", -0.1, "must be a positive number"),
    ("learning-rate", float("nan"), "must be a positive number"),
    ("learning-rate", float("inf"), "must be a positive number"),
    ("schedule", "linear", "choose one of constant, cosine, step:EVERY:FACTOR"),
    ("schedule", "step:10", "choose one of"),
    ("momentum", 1.0, r"must be in \[0, 1\)"),
    ("momentum", -0.1, r"must be in \[0, 1\)"),
    ("momentum", float("nan"), r"must be in \[0, 1\)"),
    ("weight-decay", -1e-9, "must be a number from 0 to 1000000"),
    ("weight-decay", float("inf"), "must be a number from 0 to 1000000"),
    ("objective", "peers", "must be one of uniform, examples"),
    ("local-epochs", 0, "must be a whole number from 1 to 1000000"),
    ("batch-size", 0, "must be a whole number from 1 to 1000000"),
    ("batched", "yes", "must be one of auto, true, false"),
    ("batched", 1, "must be a text, not int"),
    ("validation", 1.0, r"must be a share in \[0, 1\)"),
    ("keep", "best", "must be one of last, best:balanced-accuracy, best:loss"),
    ("shots", -1, "must be a whole number from 0 to 1000000000"),
    ("evaluate-on", -1, "must be a whole number from 0 to 1000000000"),
    ("loss", "focal", "must be one of auto, ce, bce"),
    ("bad-images", "ignore", "must be one of refuse, skip"),
    ("pixel-range", "12", "must be auto or LOW:HIGH with LOW < HIGH, such as -1000:400"),
    ("pixel-range", "400:-1000", "must be auto or LOW:HIGH with LOW < HIGH"),
    ("pixel-range", "0:inf", "must be auto or LOW:HIGH with LOW < HIGH"),
    ("dicom-window", "40", "must be auto or CENTRE:WIDTH with WIDTH > 1, such as 40:400"),
    ("dicom-window", "40:1", "must be auto or CENTRE:WIDTH with WIDTH > 1"),
    ("image-size", -1, "must be a whole number of pixels, at most 8192"),
    ("crop-pct", 1.5, r"must be in \(0, 1\], or 0"),
    ("interpolation", "cubic", "must be one of empty, nearest, bilinear, bicubic"),
    ("mean", "0.5,0.5", "must be a number, or one for each of three channels"),
    ("mean", "grey", "must be a number, or one for each of three channels"),
    ("std", "0.5,0,0.5", "must be numbers from 0.001 to 1"),
    ("std", "nan", "must be a number, or one for each of three channels"),
    ("dp-clip", -1.0, "must be a number from 0 to 1000000"),
    ("dp-clip", float("nan"), "must be a number from 0 to 1000000"),
    ("dp-noise", -0.5, "must be a number from 0 to 1000000"),
    ("dp-noise", float("inf"), "must be a number from 0 to 1000000"),
    ("dp-delta", 1.0, r"must be in \[0, 1\)"),
    ("seed", -1, "must be a whole number from 0 to 9"),
    ("iterations", -1, "must be a whole number from 0 to 1000000000"),
    ("epochs", 0, "must be a whole number >= 1"),
    ("evaluate-every", -1, "must be a whole number from 0 to 1000000000"),
    ("transport", "tcp", "must be one of auto, memory, grpc"),
    ("threads", 0, "must be a whole number from 1 to 1024"),
    ("meet-timeout", 0.0, "must be a number of seconds from 0.001 to 31536000"),
    ("hang-timeout", 0.0, "must be a number of seconds from 0.001 to 31536000"),
    ("peer-timeout", -1.0, "must be a number of seconds from 0.001 to 31536000"),
    ("peer-timeout", float("nan"), "must be a number of seconds from 0.001 to 31536000"),
    ("peer-timeout", float("inf"), "must be a number of seconds from 0.001 to 31536000"),
    ("output-dir", "results", "must be an absolute path"),
    ("on-failure", "panic", "must be one of continue, wait, stop"),
    ("rejoin-deadline", 0.0, "must be a number of seconds from 0.001 to 31536000"),
    ("checkpoint-every", -2, r"must be .* 0 \(when peers are evaluated\) or -1 \(never\)"),
    ("checkpoints-kept", 0, "must be a whole number from 1 to 1000000"),
    ("resume", "runs/12", "must be a run's id .* or the absolute path"),
    ("resume", "../12", "must be a run's id"),
    ("observer-address", "office.example", "must be empty, or host:port, such as"),
    ("observer-address", ":9100", "must be empty, or host:port, such as"),
    ("observer-address", "office.example:99999", "must be empty, or host:port, such as"),
]


@pytest.mark.parametrize(("key", "value", "right"), WRONG)
def test_a_wrong_value_is_refused_with_key_value_and_what_is_right(key, value, right):
    with pytest.raises(ConfigError, match=rf"^{key} = {value!r}.*{right}"):
        RunConfig.from_mapping({key: value})


NUMBERS = [key for key, value in config_keys().items() if type(value) in (int, float)]


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_least_and_a_largest_value(key):
    whole = isinstance(config_keys()[key], int)
    for value in (2**63, -(2**62)) if whole else (1e300, -1e300, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=rf"^{key} = {re.escape(repr(value))}: must be "):
            RunConfig.from_mapping({key: value})


TOGETHER = [
    (
        {"partition": "own"},
        r"partition = 'own' with dataset = 'digits': give dataset = folder:/path, table:/path or",
    ),
    (
        {"dataset": "folder:/s-{peer}", "partition": "iid"},
        r"partition = 'iid' with dataset = 'folder:/s-{peer}': each peer has a folder of its own",
    ),
    (
        {"pixel-range": "auto,0:4095"},
        r"pixel-range = 'auto,0:4095' with dataset = 'digits': one range a peer needs a folder or table",
    ),
    ({"stream": True}, r"stream = true with dataset = 'digits': only a folder:/path can grow"),
    (
        {"stream": True, "dataset": "folder:/s", "shots": 3},
        r"stream = true with shots = 3: shots are drawn once",
    ),
    (
        {"stream": True, "dataset": "folder:/s", "partition": "shards:2"},
        r"stream = true with partition = 'shards:2': whose a new image is must follow from",
    ),
    (
        {"validation": 0.2, "dataset": "folder:/s-{peer}"},
        r"validation = 0.2 with keep = 'last', stream = false, dataset = 'folder:/s-{peer}': the images",
    ),
    (
        {"validation": 0.2, "keep": "best:loss", "dataset": "folder:/s", "stream": True},
        r"validation = 0.2 with keep = 'best:loss', stream = true, dataset = 'folder:/s': the images to be",
    ),
    (
        {"class-weights": "balanced", "stream": True, "dataset": "folder:/s"},
        r"class-weights = 'balanced' with stream = true: .*choose one",
    ),
    (
        {"class-weights": "balanced", "dp-clip": 1.0},
        r"class-weights = 'balanced' with dp-clip = 1.0: .*are not private",
    ),
    (
        {"keep": "best:loss"},
        r"keep = 'best:loss' with validation = 0: .* never by test images: give valid",
    ),
]


@pytest.mark.parametrize(("values", "message"), TOGETHER, ids=str)
def test_settings_of_the_data_that_do_not_go_together_are_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_mapping(values).learning.check_data()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"dataset": "folder:/s-{peer}"},
        {"dataset": "folder:/s-{peer}", "partition": "own", "stream": True},
        {"dataset": "folder:/s", "stream": True, "partition": "classes:0,1"},
        {"dataset": "folder:/s", "stream": True, "bad-images": "skip", "augment": "basic"},
    ],
    ids=str,
)
def test_settings_of_the_data_that_go_together_are_taken(values):
    RunConfig.from_mapping(values).learning.check_data()


KINDS = {int: ("a whole number", ["3", 3.0, True, None]), float: ("a number", ["0.1", True, None, [0.1]])}
KINDS[str] = ("a text", [3, 0.5, False, None])
KINDS[bool] = ("true or false", [0, 1, "true", None])


@pytest.mark.parametrize("key", config_keys())
def test_a_value_of_another_type_is_refused_whatever_the_key(key):
    right, others = KINDS[type(config_keys()[key])]
    for other in others:
        if key == "batched" and other is False:
            continue  # it is one of its values
        with pytest.raises(ConfigError) as raised:
            RunConfig.from_mapping({key: other})
        assert str(raised.value) == f"{key} = {other!r}: must be {right}, not {type(other).__name__}"


def test_a_home_folder_may_be_written_with_a_tilde():
    assert RunConfig.from_mapping({"output-dir": "~/results"}).runtime.output_dir == "~/results"

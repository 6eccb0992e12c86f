"""How one's own code is found."""

from __future__ import annotations

import sys

import pytest

from p2pft_flower.errors import ConfigError
from p2pft_flower.plugins import is_reference, load_reference


@pytest.mark.parametrize(
    "value",
    ["my_module:my_name", "package.module:Name", "/some/where/file.py:name", "file.py:name", "~/f.py:f"],
)
def test_a_module_or_file_with_a_name_is_a_reference(value):
    assert is_reference(value)


@pytest.mark.parametrize(
    "value",
    ["", "digits", "my_module", "my_module:", ":name", "a b:c", "my-module:x", "m:0-1", "m:f()", "a..b:c"],
)
def test_anything_else_is_not(value):
    assert not is_reference(value)


@pytest.mark.parametrize(
    "value", ["classes:0-1,2-3", "dirichlet:0.5", "last-blocks:2", "folder:/path", "ring:8"]
)
def test_the_packages_own_settings_are_never_taken_for_a_reference(value):
    assert not is_reference(value)


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "plugins_own.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n\n"
        "number = 3\n\n"
        "def triple(x):\n    return number * x\n\n"
        "@dataclass\nclass Pair:\n    a: int = 1\n"
    )
    yield file
    sys.modules.pop("plugins_own", None)


def test_a_name_is_found_in_a_module_on_the_path(own, monkeypatch):
    monkeypatch.syspath_prepend(own.parent)
    assert load_reference("plugins_own:triple", key="algorithm")(4) == 12


def test_a_name_is_found_in_a_file_anywhere_dataclasses_too(own, monkeypatch):
    assert load_reference(f"{own}:triple", key="algorithm")(4) == 12
    assert load_reference(f"{own}:Pair", key="algorithm")().a == 1
    monkeypatch.setenv("HOME", str(own.parent))
    assert load_reference("~/plugins_own.py:triple", key="algorithm")(2) == 6


def test_a_file_is_run_once_and_two_of_the_same_name_are_two(own, tmp_path):
    assert load_reference(f"{own}:Pair", key="model") is load_reference(f"{own}:Pair", key="model")
    other = tmp_path / "other" / own.name
    other.parent.mkdir()
    other.write_text("def triple(x):\n    return 'other'\n")
    assert load_reference(f"{other}:triple", key="model")(4) == "other"
    assert load_reference(f"{own}:triple", key="model")(4) == 12


def test_a_file_that_fails_while_it_runs_says_why_and_is_not_kept_half_loaded(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import no_such_package\n\ndef f(): ...\n")
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"cannot import .*broken\.py' \(No module named 'no_such_package'\)"
        ):
            load_reference(f"{file}:f", key="model")
    file.write_text("def half():\n    return 1\n\nraise RuntimeError('in the middle')\n")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="in the middle"):
            load_reference(f"{file}:half", key="model")
    file.write_text("def f():\n    return 'mended, and longer than before'\n")
    assert load_reference(f"{file}:f", key="model")() == "mended, and longer than before"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module:f", r"cannot import 'no_such_module' .*put it into the app's folder"),
        ("json.no_such:f", r"cannot import 'json\.no_such'"),
        ("/no/such.py:f", r"cannot import '/no/such\.py'"),
        ("{own}:quadruple", r"has no 'quadruple'; it has annotations, dataclass, number, triple, Pair"),
        ("{own}:number", r"'number' is a int, not something to call"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_key_and_the_value(value, message, own):
    value = value.format(own=own)
    with pytest.raises(ConfigError, match=message) as raised:
        load_reference(value, key="partition")
    assert str(raised.value).startswith(f"partition = {value!r}: ")

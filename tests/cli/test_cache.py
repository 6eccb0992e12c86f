"""``p2pft cache``: list, clear, limit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from p2pft_flower.cli import app
from p2pft_flower.cli.cache import parse_size
from p2pft_flower.errors import ConfigError
from p2pft_flower.learning.store.trunk_store import Field, Store, cache
from tests.commands import CliRunner

ABOUT = {"model": "vit_tiny", "path": "class-token", "trunk-dtype": "float32", "weights": "abc"}


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path))


def invoke(*words, **options):
    return CliRunner().invoke(app, ["cache", *words], env={"COLUMNS": "80"}, **options)


def made(name: str, rows: int = 3, dtype: str = "float32") -> Store:
    store = Store(cache.store_folder({"name": name}), [Field("x", (16,), dtype)], ABOUT)
    store.fill([bytes([i] * 16) for i in range(rows)], lambda p: [np.ones((len(p), 16), dtype)], batch=2)
    return store


def closed(name: str) -> str:
    store = made(name)
    store.close()
    return store.folder.name


def test_list_shows_model_layout_rows_size_and_use(tmp_path):
    open_one, name = made("a"), closed("b")
    shown = invoke("list")
    assert shown.exit_code == 0
    lines = {
        n: next(line for line in shown.output.splitlines() if n in line) for n in (name, open_one.folder.name)
    }
    assert " 3 rows " in lines[name]
    assert " bytes " in lines[name]
    assert " last used 20" in lines[name]
    assert lines[open_one.folder.name].endswith(" in use")
    assert shown.output.count("\n  vit_tiny, class-token, float32\n") == 2
    assert max(len(line) for line in lines.values()) <= 80
    assert f"of 50.0 GB in {tmp_path}/cache" in shown.output


def test_list_shows_the_type_that_is_stored_and_that_of_the_trunk_apart():
    store = made("halves", dtype="float16")
    assert "\n  vit_tiny, class-token, float16 (its trunk was run in float32)\n" in invoke("list").output
    (record,) = json.loads(invoke("list", "--json").output)["stores"]
    assert record["dtypes"] == ["float16"]
    store.close()


def test_list_json_holds_every_fact():
    name = closed("a")
    record = json.loads(invoke("list", "--json").output)
    assert record["limit"] == 50_000_000_000
    (store,) = record["stores"]
    assert (store["name"], store["about"], store["rows"], store["in_use"]) == (name, ABOUT, 3, False)
    assert store["bytes"] == sum(f.stat().st_size for f in (cache.store_folder({"name": "a"})).iterdir())
    assert store["last_used"] > 0


def test_list_of_nothing_says_so_in_one_line(tmp_path):
    assert invoke("list").output == f"0 bytes of 50.0 GB in {tmp_path}/cache\n"


def test_clear_removes_what_was_named_or_begins_like_it_and_says_what_it_freed():
    names = [closed("a"), closed("b")]
    done = invoke("clear", names[0][:6])
    assert done.exit_code == 0
    assert f"removed {names[0]} (" in done.output
    assert "freed " in done.output
    assert [record.name for record in cache.stores()] == [names[1]]


def test_clear_leaves_what_is_in_use_and_says_so():
    store, free = made("a"), closed("b")
    done = invoke("clear", "--all", "--yes")
    assert done.exit_code == 1
    assert f"removed {free}" in done.output
    assert f"in use and left: {store.folder.name}" in done.output
    assert [record.name for record in cache.stores()] == [store.folder.name]


def test_clear_all_asks_unless_told_yes():
    closed("a")
    refused = invoke("clear", "--all", input="n\n")
    assert refused.exit_code == 1
    assert "Remove 1 stores" in refused.output
    assert len(cache.stores()) == 1
    assert invoke("clear", "--all", input="y\n").exit_code == 0
    assert cache.stores() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give the names of stores, or --all"),
        (("x", "--all"), "give the names of stores, or --all"),
        (("x",), "x: no store has this name"),
        (("",), ": 2 stores begin like this"),
    ],
)
def test_clear_without_a_clear_target_removes_nothing(words, message):
    closed("a"), closed("b")
    done = invoke("clear", *words)
    assert done.exit_code == 2
    assert message in done.output
    assert len(cache.stores()) == 2


def test_limit_prints_and_sets():
    assert invoke("limit").output == "50.0 GB\n"
    assert invoke("limit", "20GB").output == "20.0 GB\n"
    assert invoke("limit").output == "20.0 GB\n"
    assert cache.get_limit() == 20_000_000_000


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20 * 10**9), ("1.5 MB", 1_500_000), ("16GiB", 16 * 2**30), ("500", 500), ("2tb", 2 * 10**12)],
)
def test_a_size_is_read_with_its_unit(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "20 Gigs", "1e9", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="no size above zero"):
        parse_size(text)


def test_a_wrong_limit_leaves_the_old_one():
    done = invoke("limit", "much")
    assert done.exit_code == 2
    assert "'much' is no size above zero" in done.output
    assert cache.get_limit() == cache.DEFAULT_LIMIT


def test_a_home_that_is_a_file_is_an_error_with_exit_code_two(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "file"))
    done = invoke("limit", "1GB")
    assert done.exit_code == 2
    assert "P2PFT_HOME" in done.output

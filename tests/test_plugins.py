"""How one's own code is found."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import pytest

from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.plugins import (
    _left_out,
    call_reference,
    check_reference,
    is_reference,
    load_reference,
)

ROOT = Path(__file__).resolve().parents[1]


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
        says = r"^model = '.*half': importing it raised RuntimeError: in the middle \(.*broken\.py, line 4\)"
        with pytest.raises(ConfigError, match=says):
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


RAISING = """
import sys
from p2pft_flower.errors import DataError

def raises(kind, *words):
    raise kind(*words)

def through():
    return int("no number")

def exits():
    sys.exit(3)

def one(argument):
    return argument

def ours():
    raise DataError("the file is torn")
"""


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("raises", (KeyError, "boom"), r"KeyError: 'boom' \(.*, line 6\)"),
        ("raises", (ValueError,), r"ValueError \(.*, line 6\)"),
        ("raises", (OSError, "gone"), r"OSError: gone \(.*, line 6\)"),
        ("through", (), r"ValueError: invalid literal .* \(.*, line 9\)"),
        ("exits", (), r"SystemExit: 3 \(.*, line 12\)"),
        ("one", (), r"TypeError: one\(\) missing 1 required positional argument: 'argument'"),
    ],
)
def test_whatever_a_plug_in_raises_is_told_with_key_value_and_line(name, arguments, says, tmp_path):
    (tmp_path / "raising.py").write_text(RAISING)
    value = f"{tmp_path}/raising.py:{name}"
    with pytest.raises(ConfigError, match=rf"^model = '{value}': calling it raised {says}"):
        call_reference(value, *arguments, key="model")


def test_what_a_plug_in_says_in_the_packages_own_errors_stays_as_it_is(tmp_path):
    (tmp_path / "raising.py").write_text(RAISING)
    with pytest.raises(DataError, match=r"^the file is torn$"):
        call_reference(f"{tmp_path}/raising.py:ours", key="dataset")


# --- what is known without running any code -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module:f", r"cannot import 'no_such_module' \(No module named 'no_such_module'\)"),
        ("json.no_such:f", r"^$"),  # a package may look elsewhere once it is imported
        ("json.decoder:f", r"'json\.decoder' has no 'f'"),
        ("/no/such.py:f", r"cannot import '/no/such\.py' .*No such file"),
        ("{own}:quadruple", r"has no 'quadruple'"),
        ("beside.inner.deep:g", r"has no 'g'"),
        ("beside.other:f", r"cannot import 'beside\.other' \(No module named 'beside\.other'\)"),
        ("test_beside:f", r"leaves out test_\*\.py"),
        ("lib.beside:f", r"leaves out the folder lib/"),
    ],
)
def test_what_would_not_be_found_is_refused_without_an_import(value, message, own, tmp_path):
    (tmp_path / "beside" / "inner").mkdir(parents=True)  # packages without __init__.py
    (tmp_path / "beside" / "inner" / "deep.py").write_text("raise RuntimeError\ndef f(): ...\n")
    (tmp_path / "test_beside.py").write_text("def f(): ...\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "beside.py").write_text("def f(): ...\n")
    check_reference("beside.inner.deep:f", key="model", beside=[tmp_path])
    value = value.format(own=own)
    if message == "^$":
        check_reference(value, key="partition", beside=[tmp_path])
        return
    with pytest.raises(ConfigError, match=message) as raised:
        check_reference(value, key="partition", beside=[tmp_path])
    assert str(raised.value).startswith(f"partition = {value!r}: ")


@pytest.mark.parametrize(
    "text",
    [
        "def name(): ...",
        "async def name(): ...",
        "class name: ...",
        "name = 1",
        "(a, [name, *b]) = c",
        "import name",
        "from a import b as name",
        "from a import *",
        "if 1:\n    name = 2",
        "globals()['na' + 'me'] = 3",
        "def __getattr__(key): ...",
        "with open() as name: ...",
        "def set_it():\n    global name\n    name = 4",
    ],
)
def test_a_module_that_may_have_the_name_passes(text, tmp_path):
    (tmp_path / "m.py").write_text(text + "\n")
    check_reference(f"{tmp_path}/m.py:name", key="model")


@pytest.mark.parametrize("text", ["", "name", "print(name)", "other = 1", "x.name = 1", "def f(name): ..."])
def test_a_module_that_has_not_the_name_is_refused(text, tmp_path):
    (tmp_path / "m.py").write_text(text + "\n")
    with pytest.raises(ConfigError, match="has no 'name'"):
        check_reference(f"{tmp_path}/m.py:name", key="model")


@pytest.mark.parametrize("content", [b"def f(:\n", b"\xff\xfe", b"x\0y"])
def test_a_file_that_is_no_python_is_refused(content, tmp_path):
    (tmp_path / "m.py").write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot import '.*/m\.py'"):
        check_reference(f"{tmp_path}/m.py:f", key="model")


# --- what Flower's bundle of the app leaves out -------------------------------------------------------------

LACKING = """
from pathlib import Path

def reads(where="pixels.npy"):
    return Path(__file__).with_name(where).read_bytes()

def reads_elsewhere():
    return Path("/no/such/pixels.npy").read_bytes()

def imports():
    import test_helper
"""


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """An app as Flower unpacks it for the processes of a run."""
    folder = tmp_path / "flwr" / "apps" / "p2pft.p2pft.0.1.0.01234567"
    folder.mkdir(parents=True)
    (folder / "plugins_lacking.py").write_text(LACKING)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("plugins_lacking", None)


def test_data_beside_a_module_is_said_not_to_be_in_the_bundle(bundle):
    with pytest.raises(ConfigError) as raised:
        call_reference("plugins_lacking:reads", key="dataset")
    said = str(raised.value)
    assert said.startswith(
        f"dataset = 'plugins_lacking:reads': there is no {bundle}/pixels.npy; Flower's bundle"
    )
    assert "carries .py, .toml, .md, .yaml, .json and .jsonl files only" in said
    assert "absolute path" in said


def test_a_file_that_is_missing_elsewhere_is_no_matter_of_the_bundle(bundle, monkeypatch):
    with pytest.raises(ConfigError, match=r"calling it raised FileNotFoundError: .*/no/such/pixels"):
        call_reference("plugins_lacking:reads_elsewhere", key="dataset")
    monkeypatch.setenv("FLWR_HOME", "/elsewhere")  # the same module, beside no app of Flower's
    with pytest.raises(ConfigError, match=r"calling it raised FileNotFoundError: .*pixels\.npy"):
        call_reference("plugins_lacking:reads", key="dataset")
    with pytest.raises(ConfigError, match=r"calling it raised ModuleNotFoundError: .*test_helper"):
        call_reference("plugins_lacking:imports", key="dataset")


def test_a_module_that_a_bundle_never_has_is_said_to_be_left_out_by_its_name(bundle):
    with pytest.raises(
        ConfigError, match=r"No module named 'test_helper'.* leaves out test_\*\.py and \*_test\.py"
    ):
        call_reference("plugins_lacking:imports", key="dataset")
    for value, left_out in [
        ("test_model:vit", r"leaves out test_\*\.py and \*_test\.py: rename it"),
        ("vit_test:vit", r"leaves out test_\*\.py and \*_test\.py: rename it"),
        ("lib.model:vit", r"leaves out the folder lib/: rename it"),
        ("build.model:vit", r"leaves out the folder build/: rename it"),
        ("model:vit", r"of the app's folder, Flower's bundle of an app carries \.py"),
    ]:
        with pytest.raises(ConfigError, match=left_out):
            load_reference(value, key="model")


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # of Flower
def test_what_is_said_of_the_bundle_is_what_flower_bundles(tmp_path):
    """Flower's own builder, on an app with one file of each kind."""
    from flwr.cli.build import build_fab_from_disk

    app = tmp_path / "app"
    (app / "inner").mkdir(parents=True)
    source = ROOT / "apps" / "p2pft" / "pyproject.toml"
    (app / "pyproject.toml").write_text(source.read_text())
    (app / ".gitignore").write_text("ignored.py\n")
    kept = [f"inner/f.{kind}" for kind in ("py", "toml", "md", "yaml", "yml", "json", "jsonl")]
    left = [f"inner/f.{kind}" for kind in ("csv", "npy", "npz", "txt", "png", "safetensors", "so")]
    left += ["test_a.py", "inner/test_a.py", "inner/a_test.py", "ignored.py", "link.py"]
    left += [f"{folder}/a.py" for folder in ("build", "eggs", "lib", "lib64", "parts", "env", "venv", "ENV")]
    for name in [*kept, *left]:
        (app / name).parent.mkdir(exist_ok=True)
        (app / name).write_text("{}\n")
    (app / "link.py").unlink()
    (app / "link.py").symlink_to(app / "inner" / "f.py")
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app))) as archive:
        assert set(archive.namelist()) - {".info/CONTENT"} == {"pyproject.toml", *kept}
    assert all(_left_out(name.removesuffix(".py").replace("/", ".")) for name in left if "/a.py" in name)
    assert all(_left_out(name) for name in ("test_a", "inner.test_a", "inner.a_test"))
    assert not any(_left_out(name) for name in ("inner.f", "inner.lib.f", "contest", "testing"))

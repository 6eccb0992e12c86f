"""Every code block of the documents is run by a test, or a table says why it is not; all commands are read.

Blocks of bash are read by bash itself (tests/blocks.py), so each command's words are those that a reader's
shell would make: the command and its options exist, and the run-config's keys and values are taken.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from p2pft_flower.cli import app
from p2pft_flower.cli.fedtune import _by_source
from p2pft_flower.cli.settings import check, parse_settings
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import P2PFTError
from tests.blocks import ROOT, Block, blocks_of, commands_of, shown, unlike
from tests.commands import CliRunner, command_of
from tests.test_documents import DOCUMENTS

HERE = "tests/test_document_blocks.py::"
PYTHON = HERE + "test_the_python_of_a_document_runs_and_prints_what_it_says"
GUIDE = "tests/deploy/test_guide.py::"
GUIDE += "test_the_guide_can_be_followed_exactly_as_written_and_gives_the_simulations_theta"
CLUSTER = (
    "tests/cli/test_ray_cluster.py::"
    "test_the_page_on_clusters_can_be_followed_and_two_nodes_end_with_the_bits_of_one"
)

OWN_PROBLEM = (
    "tests/flower/test_own_problem.py::test_the_example_in_the_docs_trains_to_the_mean_of_its_centres"
)
OVER_FITS = (
    "tests/flower/test_kept_best.py::"
    "test_a_run_that_over_fits_ends_with_a_better_test_score_than_its_last_theta"
)
NOTES = "tests/host/test_callbacks.py::test_the_docs_example_writes_its_notes"

RUN = {
    "README.md": {'graph = Graph.load("lopsided-4")': PYTHON},
    "deploy/README.md": dict.fromkeys([b.name for b in blocks_of(ROOT / "deploy" / "README.md")], GUIDE),
    "deploy/cluster.md": {
        **dict.fromkeys([b.name for b in blocks_of(ROOT / "deploy" / "cluster.md")][:4], CLUSTER),
        "#!/bin/bash": "tests/cli/test_ray_cluster.py::"
        "test_the_slurm_job_starts_ray_on_each_node_and_then_the_run",
    },
    "docs/extending.md": {
        **dict.fromkeys(
            [b.name for b in blocks_of(ROOT / "docs/extending.md") if b.language == "python"], PYTHON
        ),
        "# my_problem.py: quadratics ½‖θ − c_i‖² with noise, in NumPy alone": OWN_PROBLEM,
        "p2pft run problem=$PWD/my_problem.py:quadratics topology=ring:4 iterations=500 -": OWN_PROBLEM,
        "# my_notes.py: a line for each evaluation and each lost peer, in the run's folde": NOTES,
        "p2pft run callbacks=my_notes.py:Notes": NOTES,
        "# my_wandb.py: a run of Weights & Biases for each host, grouped by the run's id": (
            "tests/host/test_callback_services.py::"
            "test_the_example_for_weights_and_biases_writes_a_run_without_a_network"
        ),
        "# my_mlflow.py: a run of MLflow for each host": (
            "tests/host/test_callback_services.py::"
            "test_the_example_for_mlflow_writes_a_run_into_a_local_store"
        ),
    },
    "docs/clinical-data.md": dict.fromkeys(
        [b.name for b in blocks_of(ROOT / "docs" / "clinical-data.md")],
        "tests/flower/test_clinical_data.py::test_the_page_on_clinical_data_can_be_followed_with_small_files",
    ),
    "docs/multi-label.md": dict.fromkeys(
        [b.name for b in blocks_of(ROOT / "docs" / "multi-label.md")],
        "tests/flower/test_several_labels.py::test_the_page_on_several_labels_can_be_followed_with_small_files",
    ),
    "docs/images.md": {
        'with np.load("organmnist3d.npz") as held:': (
            "tests/learning/data/test_medmnist_files.py::"
            "test_slices_of_volumes_are_images_as_the_page_on_images_writes_them"
        )
    },
    "docs/features.md": {"rng = np.random.default_rng(0)": PYTHON},
    "docs/keeping-the-best.md": {
        "# noisy_digits.py: digits, of which three training images in ten have a wrong la": OVER_FITS,
        "p2pft run dataset=$PWD/noisy_digits.py:noisy partition=iid shots=40 iterations=2": OVER_FITS,
    },
    "docs/privacy.md": {
        'python -c "from p2pft_flower.learning.privacy import epsilon': HERE
        + "test_a_python_command_prints_what_it_says"
    },
    "docs/security.md": dict.fromkeys(
        [b.name for b in blocks_of(ROOT / "docs" / "security.md")],
        HERE + "test_the_certificates_of_the_page_on_security_are_made_as_it_says",
    ),
}
"""By document and by the block's name, the test that runs the block, or the same with a smaller run."""

MINUTES = "it trains for minutes; its words are checked"
WEIGHTS = "it needs weights or images that the package does not bring; its words are checked"
HOURS = "it trains for hours, on images that the package does not bring; its words are checked"
INSTALLS = "it installs packages, as .ci/run does; its words are checked"
RUNNING = "it needs a run that is under way; its words are checked"
PARTLY = (
    "what asks for no run is run (test_what_asks_for_no_run_is_run); the rest has tests of its own in "
    "tests/cli, and its words are checked"
)
KEPT = "it needs a run of an earlier block; its words are checked"

NOT_RUN = {
    "CONTRIBUTING.md": {
        "pip install -e '.[dev]' && pre-commit install": INSTALLS,
        "python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. p2pft_flower/transpo": (
            "it writes into the package"
        ),
    },
    "README.md": {
        "p2pft compare p2pft,dgd,local,fedavg,centralized topology=lopsided-4 --out compa": MINUTES,
        "p2pft run topology=lopsided-4 algorithm-options=local-steps=8 codec=q4": MINUTES,
        "pip install -e . && flwr run apps/p2pft --stream": INSTALLS,
        "pip install -e '.[test]' && pytest": INSTALLS,
        "p2pft run topology=exponential:16 epochs=10 --out results/sixteen": PARTLY,
        "p2pft run model=vit_small_patch16_224 dataset=cifar10 download=true learning-rat": WEIGHTS,
        "p2pft export results/pets -o models": KEPT,
        "model = timm.create_model(": KEPT,
        "p2pft compare p2pft,dgd,local,fedavg,centralized topology=ring-4 --out compariso": MINUTES,
        "p2pft reproduce table2 --data-dir /data": HOURS,
        "p2pft reproduce fedtune --quick": MINUTES,
    },
    "apps/p2pft/README.md": {
        "pip install -e .": INSTALLS,
        "flwr run . --stream": MINUTES,
        "p2pft run topology=lopsided-4 epochs=5": MINUTES,
        'flwr run . --stream --run-config \'topology="lopsided-4" algorithm="dgd" epochs=5': MINUTES,
        "flwr run . --stream --run-config conf/vit-pets.toml": HOURS,
        "p2pft up --peers 4": "tests/cli/test_up.py rehearses with fewer peers; its words are checked",
    },
    "deploy/cluster.md": {"ray stop": "it ends each Ray of the machine, also others'"},
    "docs/clip.md": {
        "pip install -e '.[clip]'": WEIGHTS,
        'echo \'{"0": "zero", "1": "one", "2": "two", "3": "three", "4": "four",': MINUTES,
        "p2pft text-embeddings digits.safetensors text-tower=glyph_clip_8 class-names=dig": KEPT,
        'model, classes = load_export("export/peer-0.safetensors")': KEPT,
    },
    "docs/dashboard.md": {"p2pft dashboard": RUNNING, "ssh -L 8265:127.0.0.1:8265 gpu3": "another machine"},
    "docs/features.md": {
        "p2pft run dataset=features:/data/slides.safetensors model=none tune=head learnin": WEIGHTS,
        "p2pft run dataset=features:/data/pets.safetensors model=none tune=head head=text": WEIGHTS,
    },
    "docs/fedtune.md": {"p2pft reproduce fedtune --quick": MINUTES},
    "docs/images.md": {
        "p2pft data show dataset=folder:/data/birds topology=ring:4": WEIGHTS,
        "p2pft run dataset=medmnist:pathmnist_64 data-dir=/data/medmnist image-size=64 mo": WEIGHTS,
        "pip install -e '.[hf]'": INSTALLS,
        "pip install -e '.[medical]'": INSTALLS,
    },
    "docs/monitoring.md": {"p2pft status": PARTLY},
    "docs/per-class.md": {
        "p2pft run --out default": MINUTES,
        "table = pandas.read_csv(": KEPT,
    },
    "docs/privacy.md": {"pip install -e '.[dp]'": INSTALLS, "for seed in 0 1 2; do": MINUTES},
    "docs/report.md": {
        "p2pft compare p2pft,dgd,local,fedavg,centralized topology=lopsided-4 --out compa": MINUTES
    },
    "docs/results.md": dict.fromkeys(
        [
            "python -m benchmarks.results run --data DATA --out OUT && python -m benchmarks.r",
            "python -m benchmarks.results run --data DATA --out OUT --only shots && python -m",
            "python -m benchmarks.few_images run --data DATA --out OUT",
            "python -m benchmarks.clinical run --data DATA --out OUT && python -m benchmarks.",
            "python -m benchmarks.clip_features make --data DATA --out FILES",
            "p2pft reproduce fedtune vision-language.dataset=features:FILES/pets-24.safetenso",
            "p2pft reproduce fedtune $VIT vision.dataset=cifar10 vision.data-dir=DATA/cifar10",
            "p2pft reproduce fedtune $DEIT vision.dataset=folder:FILES/cifar10-500 $SET --out",
            "p2pft reproduce fedtune $VIT vision.dataset=folder:FILES/cifar10-500 iterations=",
            "p2pft attention OUT/attention/Pets-37_local OUT/attention/Pets-37_p2pft OUT/atte",
        ],
        HOURS,
    ),
    "docs/resume.md": {"p2pft run --resume 13246128602208677506": KEPT},
    "docs/upgrade.md": {"p2pft stop": RUNNING},
}
"""By document and by the block's name, the reason why no test runs the block."""

QUICK = (
    *("p2pft topology list", "p2pft topology show", "p2pft topology audit", "p2pft data show topology="),
    *("p2pft cache list", "p2pft runs", "p2pft status"),
)
"""The beginnings of commands that are run as they stand, since they ask for no run."""

ENDS = {
    "p2pft runs remove pets-lora": 2,
    "p2pft status": 1,
    "p2pft status --json": 1,
    "p2pft status --watch": 1,
}
"""The exit codes of those that find no run here; the others exit with 0."""

BASH = [d for d in DOCUMENTS if any(b.language == "bash" for b in blocks_of(d)) and d.parent.name != "deploy"]
SCRIPTS = [ROOT / "README.md", ROOT / "docs" / "extending.md", ROOT / "docs" / "features.md"]


def named(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def unaccounted(document: str, blocks: list[Block]) -> tuple[set[str], set[str]]:
    """Return the names of blocks that are in no table, and those of table entries that are no block."""
    names = [block.name for block in blocks]
    assert len(set(names)) == len(names), f"{document}: two blocks begin alike"
    listed = {**RUN.get(document, {}), **NOT_RUN.get(document, {})}
    return set(names) - listed.keys(), listed.keys() - set(names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_each_block_is_run_by_a_test_or_listed_with_the_reason(document: Path) -> None:
    assert unaccounted(named(document), blocks_of(document)) == (set(), set())


def test_a_new_block_is_missed_and_so_is_one_that_has_gone() -> None:
    stop = Block("docs/upgrade.md", "bash", "p2pft stop\n")
    new = Block("docs/upgrade.md", "bash", "p2pft run topology=ring:8\n")
    assert unaccounted("docs/upgrade.md", [stop, new]) == ({"p2pft run topology=ring:8"}, set())
    assert unaccounted("docs/upgrade.md", [new]) == ({"p2pft run topology=ring:8"}, {"p2pft stop"})


def test_each_test_that_a_table_names_is_there() -> None:
    for test in {test for tests in RUN.values() for test in tests.values()}:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), test


def parsed(words: list[str]) -> click.Context:
    """Return the context of the command that the words after ``p2pft`` name, with its parameters read."""
    command: click.Command = command_of(app)
    context, name = None, "p2pft"
    while True:
        context = command.make_context(name, list(words), parent=context)
        if not isinstance(command, click.Group):
            return context
        words = [*context._protected_args, *context.args]
        if not words and command.invoke_without_command:
            return context
        found, command, words = command.resolve_command(context, words)
        name = found or name


def extras() -> dict[str, list[str]]:
    """Return what each extra of the package needs."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def read(words: list[str], folder: Path) -> None:
    """Raise if a command of a block cannot be what it should; what is not ours is only looked at."""
    match words:
        case ["p2pft", *rest]:
            context = parsed(rest)
            settings = context.params.get("settings") or ()
            if "fedtune" in rest:
                _by_source(settings, quick=False)
            elif rest[0] == "text-embeddings":  # with a text head, which it sets itself
                RunConfig.from_mapping(parse_settings(settings))
            elif settings:
                check(parse_settings(settings), here=False)
        case ["flwr", "run", *rest] if "--run-config" in rest:
            told = rest[rest.index("--run-config") + 1].removesuffix("…")
            if told.endswith(".toml"):
                told = (ROOT / "apps" / "p2pft" / told).read_text(encoding="utf-8")
            pairs = re.findall(r"([\w-]+)\s*=\s*(\"[^\"\n]*\"|[^\s\"]+)", re.sub(r"#.*", "", told))
            RunConfig.from_mapping(tomllib.loads("\n".join(f"{key} = {value}" for key, value in pairs)))
            assert pairs
        case ["python", "-m", "grpc_tools.protoc", *_]:  # the extra dev has it, the extra test has not
            assert any(needed.startswith("grpcio-tools") for needed in extras()["dev"])
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module) is not None, module
        case ["python", "-c", code]:
            compile(code, "a block", "exec")
        case ["pip", "install", "-e", what]:
            assert set(re.findall(r"[\w]+", what)) <= extras().keys()


@pytest.mark.parametrize("document", BASH, ids=named)
def test_each_command_has_options_keys_and_values_that_are_taken(document: Path, tmp_path: Path) -> None:
    commands = commands_of([b for b in blocks_of(document) if b.language == "bash"], tmp_path)
    assert commands
    for words in commands:
        try:
            read(words, tmp_path)
        except (click.ClickException, P2PFTError, AssertionError) as error:
            told = error.message if isinstance(error, click.ClickException) else str(error)
            pytest.fail(f"{shown(words)}\n{told}")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("p2pft rum topology=ring-4", "No such command 'rum'"),
        ("p2pft run --outt here", "No such option"),
        ("p2pft run topolgy=ring-4 \\\n  epochs=3", "unknown run-config key 'topolgy'"),
        ("SET=learning-rate=0; p2pft run $SET", "learning-rate = 0.0"),
        ("p2pft run topology=ring-4 algorithm=p2pfd", "algorithm = 'p2pfd' is unknown"),
        ("p2pft reproduce fedtune vision.tunes=head", "unknown run-config key 'tunes'"),
        ("flwr run . --run-config 'epoch=5'", "unknown run-config key 'epoch'"),
        ("python -m benchmarks.nothing", "benchmarks.nothing"),
        ("pip install -e '.[gpu]'", ""),
    ],
)
def test_a_command_that_would_not_be_taken_is_found(line: str, fault: str, tmp_path: Path) -> None:
    (words,) = commands_of([Block("a.md", "bash", line + "\n")], tmp_path)
    with pytest.raises((click.ClickException, P2PFTError, AssertionError)) as found:
        read(words, tmp_path)
    assert fault in str(getattr(found.value, "message", found.value))


@pytest.mark.parametrize("text", ["for i in 1 2; do\np2pft stop\n", "echo 'one\n"])
def test_a_block_that_bash_cannot_read_is_found(text: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"syntax error|unexpected"):
        commands_of([Block("a.md", "bash", text)], tmp_path)


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder of the test is the working directory, where modules are found, until the test's end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize("document", SCRIPTS, ids=named)
def test_the_python_of_a_document_runs_and_prints_what_it_says(document: Path, tmp_path: Path) -> None:
    text, written = document.read_text(encoding="utf-8"), []
    for block in blocks_of(document):
        if block.language != "python" or block.name in NOT_RUN.get(named(document), {}):
            continue
        if file := re.match(r"# ((\w+)\.py):", block.text):
            (tmp_path / file[1]).write_text(block.text, encoding="utf-8")
            compile(block.text, file[1], "exec")
            written += [file[2]] if RUN[named(document)][block.name] == PYTHON else []
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.text, named(document), "exec"), {})
        after = text[text.index(block.text) + len(block.text) :]
        output = re.match(r"```\n+```text\n(.*?)```", after, re.DOTALL)
        if output:
            assert printed.getvalue() == output[1]
        else:
            assert list(unlike(block.text, printed.getvalue())) == []
    for name in written:
        assert name in sys.modules, f"{name}.py is used by no block"


def test_numbers_beside_print_count_with_their_digits() -> None:
    block = "print(a)  # 0.009: like DGD\nprint(b)  # 2e-11\nprint(c)  # (3,) (3,)\nprint(d)  # 1.5\n"
    assert list(unlike(block, "0.00893\n7.3e-11\n(3,) (3,)\n1.5\n")) == []
    assert list(unlike(block, "0.0099\n3e-10\n(4,) (3,)\n1.4\n")) == [
        "0.0099, not 0.009: like DGD",
        "3e-10, not 2e-11",
        "(4,) (3,), not (3,) (3,)",
        "1.4, not 1.5",
    ]


def run_here(words: list[str], code: int = 0) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == code, f"{shown(words)}\n{done.output}\n{done.exception!r}"


def test_what_asks_for_no_run_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    ran = set()
    for document in BASH:
        for words in commands_of([b for b in blocks_of(document) if b.language == "bash"], tmp_path):
            line = shown(words)
            if line.startswith(QUICK) and line not in ran:
                run_here(words[1:], ENDS.get(line, 0))
                ran.add(line)
    assert len(ran) >= 9
    assert (tmp_path / "lopsided.png").stat().st_size > 1000


def test_the_certificates_of_the_page_on_security_are_made_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "etc").mkdir()
    page = blocks_of(ROOT / "docs" / "security.md")
    assert len(page) == 3
    for words in commands_of(page, tmp_path):
        if words[0] == "p2pft":
            run_here(words[1:])
            continue
        copy, *sources, place = words
        assert copy == "cp"
        files = [file for source in sources for file in tmp_path.glob(source)]
        assert files, shown(words)
        folder = tmp_path / ("etc" if place.startswith("/") else place)
        for file in files:
            (folder / file.name).write_bytes(file.read_bytes())
    assert {file.name for file in (tmp_path / "ward").iterdir()} >= {"ca.pem", "peer.pem", "peer.key"}
    assert (tmp_path / "etc" / "crl.pem").is_file()


def test_a_python_command_prints_what_it_says(tmp_path: Path) -> None:
    (block,) = (b for b in blocks_of(ROOT / "docs" / "privacy.md") if b.name.startswith("python -c"))
    ((_, _, code),) = commands_of([block], tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/privacy.md", "exec"), {})
    said = re.search(r"# (\d+\.\d+)…$", block.text, re.MULTILINE)
    assert said is not None
    assert printed.getvalue().startswith(said[1])

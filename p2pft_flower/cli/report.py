"""``p2pft report``: one page that tells how runs went, and opens offline."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pft_flower.cli.bars import counted
from p2pft_flower.cli.exit_codes import EXIT_FAILED, EXIT_USAGE
from p2pft_flower.cli.run_names import folder_named
from p2pft_flower.errors import ConfigError, DataError, P2PFTError, printable
from p2pft_flower.keeping.folders import require_writable
from p2pft_flower.report.own_tails import is_own_tail, tail_metadata
from p2pft_flower.report.page.beside import find_attention
from p2pft_flower.report.page.build import build
from p2pft_flower.report.page.document import Report, as_html, as_markdown
from p2pft_flower.report.page.material import Material
from p2pft_flower.report.page.reading import find_runs
from p2pft_flower.report.page.runs import Run
from p2pft_flower.report.page.tidy import EVALUATIONS, OUTCOMES, evaluations_csv, outcomes_csv
from p2pft_flower.report.page.verdicts import Answers
from p2pft_flower.report.results import stopped_tail_name, tail_name

__all__ = ["report"]

SCHEMA = "p2pft.report/1"

BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
"""Programs that print the page as PDF, in the order in which they are looked for on PATH."""

PRINTING = 120.0
"""Seconds that a browser may take to print the page."""


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Runs, by folder, id or name, or a folder that p2pft compare wrote."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.html", help="The page.")] = Path(
        "report.html"
    ),
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write its sentences and tables as Markdown, too.")
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help=f"Write its numbers as tables, too: {EVALUATIONS} and {OUTCOMES}."
        ),
    ] = None,
    pdf: Annotated[
        Path | None,
        typer.Option(metavar="FILE.pdf", help="Print it, too, with a Chromium or Chrome on PATH."),
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(help="The dataset's folder on this machine, if it lies elsewhere than in the run."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write one page on runs: whether every peer learned the classes it never saw, they agree, and the cost.

    The page needs nothing else: it opens offline and makes no request. Each section begins with sentences
    made of the numbers. Peers' tails are scored again, class by class, on the test images of their run; if
    these are not at hand, the page says so and is written without. With p2pft compare's folder it sets the
    methods side by side: p2pft compare p2pft,fedavg,centralized --out c && p2pft report c -o c.html.

    Exit codes: 0 the page was written, and all that it leaves out is named in it; 1 the browser did not
    print it; 2 a run or an option cannot be used, and nothing was written.
    """
    try:
        browser = _check(output, markdown, csv, pdf)
        runs = [*map(folder_named, runs)]
        found = find_runs(runs)
        answers, unscored = _answers(found, data_dir)
        material = Material(found, answers, unscored)
        folders = [*runs, *(run.folder for run in found)]
        made = build(material, find_attention(folders))
        written = _write(made, found, output, markdown, csv)
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    for label, why in unscored.items():
        typer.echo(f"left out: the classes of {printable(label)}: {printable(why)}", err=True)
    if pdf is not None and browser is not None:
        why = _print(browser, output, pdf)
        if why:
            typer.echo(f"error: --pdf {pdf}: {browser} did not print the page: {why}", err=True)
            raise typer.Exit(EXIT_FAILED)
        written.append(pdf)
    if as_json:
        typer.echo(json.dumps(_told(made, material, written), indent=2))
        return
    for answer in made.answers:
        typer.echo(f"{answer.question} {printable(answer.word)}.")
    typer.echo(f"report: {', '.join(map(str, written))}")


def _check(output: Path, markdown: Path | None, csv: Path | None, pdf: Path | None) -> str | None:
    """Refuse places that cannot be written and a PDF without a browser; return the browser for a PDF.

    Raises
    ------
    ConfigError
        When a file has another ending than its kind, or its place cannot be written, or no browser is there.
    """
    for option, path, ending in (
        ("-o", output, ".html"),
        ("--markdown", markdown, ".md"),
        ("--pdf", pdf, ".pdf"),
    ):
        if path is None:
            continue
        if path.suffix.lower() != ending or path.is_dir():
            raise ConfigError(f"{option} {path}: give the name of a file that ends in {ending}")
        require_writable(f"{option} {path}", path.parent, "choose another place")
    if csv is not None:
        if csv.exists() and not csv.is_dir():
            raise ConfigError(f"--csv {csv}: it is a file; give a folder for {EVALUATIONS} and {OUTCOMES}")
        require_writable(f"--csv {csv}", csv, "choose another place")
    if pdf is None:
        return None
    browser = next((there for name in BROWSERS if (there := shutil.which(name))), None)
    if browser is None:
        raise ConfigError(
            f"--pdf {pdf}: none of {', '.join(BROWSERS)} is on PATH: install one (Debian: apt-get install "
            "chromium), or leave --pdf out and print the page from any browser"
        )
    return browser


def _answers(runs: Sequence[Run], data_dir: str | None) -> tuple[dict[str, list[Answers]], dict[str, str]]:
    """Return the answers of each run's tails by the run's label, and the reasons why some are not known."""
    answers, unscored = dict[str, list[Answers]](), dict[str, str]()
    with counted("scoring tails", sum(len(run.results.peers) for run in runs)) as advance:
        for run in runs:
            if not run.scored:
                continue
            try:
                answers[run.label] = _scored(run, data_dir, advance)
            except (P2PFTError, OSError) as error:
                unscored[run.label] = str(error).replace(str(run.folder), run.folder.name)
                continue
            missing = [
                p.peer for p in run.results.peers if p.peer not in {a.peer for a in answers[run.label]}
            ]
            if missing:
                unscored[run.label] = f"of peers {missing}: {_no_tail(run, set(missing))}"
    return answers, unscored


def _no_tail(run: Run, peers: Set[int]) -> str:
    """Return that there is no tail of the end of ``peers``, and which of them have one of before."""
    where = f"{run.folder.name}/peers"
    stopped = dict[str, list[str]]()
    for peer in sorted(peers):
        if (file := run.folder / stopped_tail_name(peer)).is_file():
            done = printable(tail_metadata(file).get("iterations", "an unknown number of"))
            stopped.setdefault(done, []).append(str(peer))
    if not stopped:
        return f"no tail lies in {where}"
    whose = (
        f"{'peer' if len(some) == 1 else 'peers'} {' '.join(some)} after {done} iterations"
        for done, some in stopped.items()
    )
    return (
        f"in {where} lie only tails of peers that stopped before their end (peer-<i>.stopped.safetensors, "
        f"which p2pft evaluate scores by the file's name): {'; '.join(whose)}"
    )


def _scored(run: Run, data_dir: str | None, advance: Callable[[int], None]) -> list[Answers]:
    """Return the answers of a run's tails that lie in its folder.

    Raises
    ------
    DataError, ConfigError
        When there are none, or they cannot be scored as p2pft evaluate scores them; names the reason.
    """
    files = {p.peer: run.folder / tail_name(p.peer) for p in run.results.peers}
    there = {peer: file for peer, file in files.items() if file.is_file()}
    if not there:
        raise DataError(_no_tail(run, {p.peer for p in run.results.peers}))
    if any(is_own_tail(file) for file in there.values()):
        raise DataError("its tails are of a problem of your own, which has no classes")
    from p2pft_flower.learning.tails import load_tails

    found = []
    for peer, tail in zip(there, load_tails(there.values(), data_dir=data_dir), strict=True):
        tail.require_same_images(": name the place of the same ones with --data-dir")
        given = tail.answers()
        classes = [printable(name) for name in tail.workload.holdings.classes]
        if not len(given.labels):
            raise DataError("there are no test images")
        found.append(Answers(peer, classes, given.labels.numpy(), given.predicted.numpy()))
        advance(1)
    return found


def _write(
    made: Report, runs: Sequence[Run], output: Path, markdown: Path | None, csv: Path | None
) -> list[Path]:
    """Write the files and return their paths.

    Raises
    ------
    DataError
        When one cannot be written.
    """
    texts = {output: as_html(made)}
    if markdown is not None:
        texts[markdown] = as_markdown(made)
    if csv is not None:
        texts |= {csv / EVALUATIONS: evaluations_csv(runs), csv / OUTCOMES: outcomes_csv(runs)}
    for path, text in texts.items():
        partial = path.with_name(f"{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)  # a reader sees the whole file or none
        except OSError as error:
            with contextlib.suppress(OSError):  # the folder may be at fault
                partial.unlink(missing_ok=True)
            raise DataError(f"{path} cannot be written ({error.strerror})") from error
    return list(texts)


def _print(browser: str, page: Path, pdf: Path) -> str:
    """Print the page with a browser; return an empty text, or the reason why it did not."""
    with tempfile.TemporaryDirectory(prefix="p2pft-print-") as home:
        printed = Path(home) / "page.pdf"
        command = [
            browser,
            "--headless",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--host-resolver-rules=MAP * ~NOTFOUND",  # the browser itself asks its maker nothing
            f"--user-data-dir={home}/profile",
            "--no-pdf-header-footer",
            f"--print-to-pdf={printed}",
            page.resolve().as_uri(),
        ]
        if os.geteuid() == 0:  # Chromium's sandbox refuses root
            command.insert(1, "--no-sandbox")
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PRINTING, check=False)  # noqa: S603
        except subprocess.TimeoutExpired:
            return f"it took longer than {PRINTING:.0f} s"
        except OSError as error:
            return str(error)
        if done.returncode or not printed.is_file():
            return printable(" ".join(done.stderr.split()[-40:])) or f"it ended with {done.returncode}"
        try:
            pdf.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(printed, pdf)
        except OSError as error:
            return str(error)
    return ""


def _told(made: Report, material: Material, written: Sequence[Path]) -> dict[str, Any]:
    """Return what --json prints: the files, the answers, and each run's verdicts."""
    return {
        "schema": SCHEMA,
        "files": [{"file": str(path), "bytes": path.stat().st_size} for path in written],
        "answers": [
            {"question": a.question, "answer": a.word, "sentences": list(a.sentences)} for a in made.answers
        ],
        "runs": [
            {
                "run": run.label,
                "folder": str(run.folder),
                "status": run.results.status,
                "learned": material.learned(run).verdict,
                "agreed": material.agreed(run).verdict,
                "scored_tails": len(material.of(run)),
            }
            for run in material.runs
        ],
        "left_out": dict(material.unscored),
    }

"""``p2pft collect``: a run's results from its peers' own files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from p2pft_flower.cli.exit_codes import EXIT_FAILED, EXIT_PARTIAL, EXIT_STOPPED, EXIT_USAGE
from p2pft_flower.cli.run_names import folder_named
from p2pft_flower.errors import DataError, P2PFTError
from p2pft_flower.keeping.folders import require_writable
from p2pft_flower.report.collected import PeerFiles, collect_results, find_peers
from p2pft_flower.report.results import FILE, finite, log_name, tail_name, write_results
from p2pft_flower.report.tables import run_table

__all__ = ["collect"]


def collect(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="The peers' folders of a run, or those that hold their runs, in any place; of a run of this "
            "machine its id or name will do.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Make a run's folder here: results.json, and the peers' journals and tails."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json, for scripts.")] = False,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="ID",
            help="The run, if the folders hold several; default the one that began last.",
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Make results without the missing peers; they name these peers.")
    ] = False,
) -> None:
    """Make a run's results from its peers' own files, without the coordinator.

    Of a run that was stopped or failed, these are the scores of each peer's last evaluation.

    Exit codes: 0 results of all peers; 1 the run failed; 2 no results; 3 results of some: others were lost
    during the run, or are missing and --partial was given; 4 the run was stopped.
    """
    try:
        peers = find_peers(
            [folder_named(f) for f in folders], run, lambda note: typer.echo(f"note: {note}", err=True)
        )
        results = collect_results(peers, partial=partial)
        if out is not None:
            require_writable(f"--out {out}", out, "choose another folder")
            if (out / FILE).exists():
                raise DataError(f"{out / FILE} is there already; choose another folder or remove it")
            _copy(peers.values(), out)
            try:
                write_results(out, results)
            except OSError as error:
                raise DataError(f"{out / FILE} cannot be written: {error.strerror}") from error
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    if as_json:
        typer.echo(json.dumps(finite(results), indent=2))
    else:
        typer.echo(run_table(results))
    if out is not None:
        typer.echo(f"results: {out / FILE}", err=as_json)
    if results["status"] != "completed":
        typer.echo(f"{results['status']}: {results['error']}", err=True)
        codes = {"failed": EXIT_FAILED, "stopped": EXIT_STOPPED}
        raise typer.Exit(codes.get(results["status"], EXIT_PARTIAL))


def _copy(peers: Iterable[PeerFiles], out: Path) -> None:
    """Copy the peers' journals and tails to the places below ``out`` that results.json names.

    Raises
    ------
    DataError
        When such a file is there already, or cannot be copied.
    """
    for files in peers:
        for source, name in ((files.log, log_name(files.peer)), (files.tail, tail_name(files.peer))):
            target = out / name
            if not source.is_file() or source.resolve() == target.resolve():
                continue
            if target.exists():
                raise DataError(f"{target} is there already; choose another folder or remove it")
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            except OSError as error:
                raise DataError(f"{source} cannot be copied to {target}: {error.strerror}") from error

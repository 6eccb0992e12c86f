"""``p2pft chaos``: harm peers of this machine at random, and check that all promises hold."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from p2pft_flower.cli.completion import complete_graphs
from p2pft_flower.cli.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from p2pft_flower.errors import ConfigError, P2PFTError
from p2pft_flower.keeping.folders import require_writable
from p2pft_flower.resources import home, home_named
from p2pft_flower.topology import Graph

if TYPE_CHECKING:
    from p2pft_flower.lab.storm import Report

__all__ = ["chaos"]

EXIT_BROKEN = 3


def chaos(
    peers: Annotated[int, typer.Option(min=3, help="Processes to start, about 0.15 GB each.")] = 8,
    minutes: Annotated[float, typer.Option(help="Minutes of faults.")] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help="Decides the faults, their times and their peers.")] = 0,
    topology: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="A graph instead of directed-ring:PEERS; it gives the number of peers.",
            autocompletion=complete_graphs,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the journals; default $P2PFT_HOME/chaos/<id>, which stays only if something did "
            "not hold."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")] = False,
) -> None:
    """Check on this machine that a run survives faults of its peers, before you trust it with yours.

    One process per peer trains the app's default job over TCP on loopback, with the code that trains at a
    site. Every few seconds one fault happens: SIGKILL of a peer, or of two at once, which are started again
    later; SIGSTOP and SIGCONT within the time after which a silent peer is suspected (4 s), and beyond it; a
    link between two neighbours that carries nothing for a while. A quorum of the peers is always left, no
    more. The same seed draws the same faults.

    Checked all the while: Σ τ = Σ g over the peers of each view after each iteration; views of one number are
    the same everywhere; no two views train at once; no peer is excluded without a reported reason; every kill
    is noticed; a quorum goes on. At the end all faults are mended: all peers must be in one view, train and
    agree, and no process may be left.

    Exit codes: 0 all held; 1 the peers could not be started; 2 an option is wrong; 3 something did not hold
    (the seed repeats the faults, the journals stay); 130 it was interrupted.
    """
    show = Console(stderr=as_json, highlight=False, soft_wrap=True)
    try:
        graph = Graph.load(topology or f"directed-ring:{peers}")
        if graph.n < 3 or minutes <= 0:
            raise ConfigError(f"{graph.n} peers for {minutes:g} minutes: give 3 peers or more, and some time")
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-seed-{seed}"
        folder = out.expanduser().absolute() if out is not None else home() / "chaos" / name
        named = f"--out {out}" if out is not None else home_named()
        require_writable(named, folder, "give the logs another folder with --out")
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; choose another folder")
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    show.print(f"starting {graph.n} peers on {graph.name}; seed {seed}; logs in {folder} …")
    from p2pft_flower.lab.storm import Storm  # torch

    folder.mkdir(parents=True, exist_ok=True)
    try:
        report = Storm(graph, 60 * minutes, seed, folder, show.print).run()
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        typer.echo("interrupted: all processes have ended", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _show(report, show)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    if out is None and report.held:
        shutil.rmtree(folder)
    else:
        (folder / "report.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
        show.print(f"logs and report.json: {folder}")
    if report.violations:
        raise typer.Exit(EXIT_BROKEN)
    if report.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


def _show(report: Report, console: Console) -> None:
    from p2pft_flower.lab.schedule import Kind
    from p2pft_flower.lab.watch import Check

    faults = Table("fault", "times", "to the next iteration, s: median", "max", "the run did not stop")
    for kind in Kind:
        count = sum(fault.event.kind is kind for fault in report.faults)
        times = report.times(kind)
        median, most = (f"{f(times):.1f}" if times else "–" for f in (statistics.median, max))
        faults.add_row(kind.value, str(count), median, most, str(count - len(times)))
    console.print(faults)
    facts = Table(show_header=False)
    facts.add_row("changes of view", str(report.views))
    facts.add_row("excluded with nothing done to them", str(len(report.unprovoked)))
    facts.add_row("iterations", str(report.iterations))
    facts.add_row(f"Σ τ − Σ g, worst of {report.sums}", f"{report.surplus:.1e} of its largest term")
    if report.deviation is not None:
        facts.add_row("farthest θ from the mean, at the end", f"{report.deviation:.1e} of its norm")
    if report.accuracy:
        low, high = min(report.accuracy.values()), max(report.accuracy.values())
        facts.add_row("accuracy at the end, lowest and highest", f"{low:.3f} {high:.3f}")
    console.print(facts)
    for loss in report.unprovoked:
        console.print(f"view {loss.view} is without peer {loss.peer}: {loss.why}", markup=False)
    broken = {violation.check for violation in report.violations}
    for check in Check:
        if check in broken:
            console.print(f"[bold red]did not hold:[/] {check.value}")
            for violation in report.violations:
                if violation.check is check:
                    console.print(f"    {violation.what}", markup=False)
        elif not report.interrupted and not broken:
            console.print(f"held: {check.value}")
    if report.held:
        console.print(f"[bold green]all held[/] (seed {report.seed})")
    elif broken:
        console.print(f"[bold red]seed {report.seed} did this[/]: give the same --seed to repeat the faults")
    else:
        console.print("interrupted: no verdict")

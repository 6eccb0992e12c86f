"""``p2pft run``: one run, with an exit code for the way it ended."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pft_flower.algorithms import ALGORITHMS
from p2pft_flower.cli.canary import NAME, canary_values, own_folder, require_room, verdict
from p2pft_flower.cli.completion import complete_connections, complete_settings
from p2pft_flower.cli.connections import check_connection
from p2pft_flower.cli.exit_codes import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    EXIT_STOPPED,
    EXIT_USAGE,
)
from p2pft_flower.cli.flwr_run import FLOWER_STOPPED, local_superlink, run_app
from p2pft_flower.cli.places import require_places
from p2pft_flower.cli.ray_cluster import RayCluster, look
from p2pft_flower.cli.rehearsal import check_rehearsed
from p2pft_flower.cli.settings import check, parse_settings, settings_of_resumed
from p2pft_flower.config import RunConfig
from p2pft_flower.errors import ConfigError, DataError, P2PFTError
from p2pft_flower.flower.logs import PREFLIGHT_PASSED, status_in
from p2pft_flower.flower.nodes import many_on_one_host
from p2pft_flower.flower.resume import by_id
from p2pft_flower.report.collected import collect_results, find_peers
from p2pft_flower.report.results import (
    FILE,
    PEERS,
    SCHEMA,
    default_output_dir,
    head,
    holds_a_run,
    read_results,
    require_place,
    take_place,
    write_results,
)
from p2pft_flower.topology import Graph

__all__ = ["Finished", "RunStoppedError", "execute", "execute_or_record", "federation", "run"]

STARTED_LINE = re.compile(r"^run (\d+) has started")
RESULTS_LINE = re.compile(r"^\d\d:\d\d:\d\d results: ")

RAYS_TIMEOUTS = (
    "The current node timed out during startup",
    "while waiting for node to startup",
    "Timed out waiting for node info",
)
"""What Ray says if its own processes do not start within its 30 s, which no setting of it changes."""

RAY_LATE = (
    "Ray, which simulates the peers, did not start in its time of 30 s, as happens if the machine has too "
    "much else to do: do the run again once it has less"
)


def most_hosts(config: RunConfig, graph: Graph) -> int:
    """Return the most hosts that a simulation can use: one for each peer.

    One if all peers are on one host: if the run is pooled, or its ``transport`` is ``memory``.
    """
    pooled = getattr(ALGORITHMS.get(config.method.algorithm), "pooled", False)
    return 1 if pooled or config.runtime.transport == "memory" else graph.n


def federation(config: RunConfig, graph: Graph, cluster: RayCluster | None = None) -> str:
    """Return the values of ``--federation-config`` for a simulation on a cluster; None: on this machine."""
    most = most_hosts(config, graph)
    if cluster is not None:
        return cluster.federation(most)
    if many_on_one_host(config.runtime.transport, graph.n):
        most = 1
    hosts = max(1, min(most, os.cpu_count() or 1))
    return f"num-supernodes={hosts} client-resources-num-cpus=1 init-args-num-cpus={hosts}"


class RunStoppedError(P2PFTError):
    """Somebody stopped the run on purpose, at one of its sites or with flwr stop."""


@dataclass(frozen=True)
class Finished:
    """A run that did not fail.

    Attributes
    ----------
    status : str
        ``completed``, ``completed-with-M-of-N``, or ``preflight-passed`` after a preflight alone.
    missing : str
        A text on the missing peers, with the reasons; empty if none is missing.
    folder : Path or None
        The folder of the results; None if the results are on another machine, or there are none.
    """

    status: str
    missing: str = ""
    folder: Path | None = None


def execute(
    values: dict[str, Any],
    *,
    connection: str | None,
    environment: Mapping[str, str] | None,
    verbose: bool,
    show: Callable[[str], None] = typer.echo,
    cluster: RayCluster | None = None,
) -> Finished:
    """Do one run and return its end, perhaps with some of the peers only (min-peers, on-failure).

    Parameters
    ----------
    values : dict
        Run-config keys and values.
    connection : str or None
        A connection of Flower's config.toml; None: this machine simulates the peers.
    environment : mapping or None
        The environment for ``flwr``, from ``local_superlink``; None: this process's own.
    verbose : bool
        Whether Flower's own lines are shown, too.
    show : callable
        Called with each line of the run's log.
    cluster : RayCluster, optional
        The Ray cluster that simulates the peers, if ``environment`` names one; default: this machine.

    Raises
    ------
    RunStoppedError
        When somebody stopped the run.
    P2PFTError
        When a setting is wrong, or the run failed; the message has the first cause.
    """
    simulated = connection is None
    config, graph = check(values, here=simulated)
    if config.runtime.output_dir:
        take_place(Path(config.runtime.output_dir))
    ended = run_app(
        values,
        connection=connection,
        environment=environment,
        federation=federation(config, graph, cluster) if simulated else "",
        show=show,
        verbose=verbose,
    )
    folder = _folder(config, ended.run_id)
    try:
        results = read_results(folder)
    except DataError:
        told = status_in(ended.output, ended.run_id)
        if told is not None and told[0] == "stopped":
            raise RunStoppedError(f"run {ended.run_id}: {told[1]}") from None
        if ended.status == FLOWER_STOPPED:
            raise RunStoppedError(
                f"run {ended.run_id}: flwr stop; its coordinator writes {folder / FILE} once it has stopped "
                "the peers"
            ) from None
        if ended.completed and not simulated and told is not None:
            return Finished(*told)
        failed = f"run {ended.run_id} ended as {ended.status} and left no results here"
        if any(mark in ended.output for mark in RAYS_TIMEOUTS):
            raise P2PFTError(f"{failed}. {RAY_LATE} (--verbose shows Flower's own log)") from None
        logged = _first_error(ended.output)
        raise P2PFTError(
            f"{failed}. Of what Flower logged (--verbose shows all as it comes):\n{logged}"
        ) from None
    if results["status"] == "stopped" or ended.status == FLOWER_STOPPED:
        why = results["error"] or "flwr stop came when its results were there"
        raise RunStoppedError(f"run {ended.run_id}: {why}")
    if not results["status"].startswith("completed") or not ended.completed:
        failed = f"run {ended.run_id} {results['status']}"
        if results["status"].startswith("completed"):
            failed += f", and Flower says of it {ended.status}; p2pft run --verbose shows its whole log"
        raise P2PFTError(failed + (f": {results['error']}" if results.get("error") else ""))
    return Finished(results["status"], results["error"] or "", folder)


def _folder(config: RunConfig, run: str) -> Path:
    chosen = config.runtime.output_dir
    return Path(chosen) if chosen else default_output_dir(run, config.runtime.name)


def _first_error(output: str) -> str:
    """Return some lines of Flower's output from its first traceback or error on, and the last ones."""
    lines = output.splitlines()
    marks = (
        k for k, line in enumerate(lines) if "Traceback (most recent call last)" in line or "ERROR" in line
    )
    first, last = next(marks, len(lines)), len(lines) - 30
    begin = [] if first >= last else [*lines[first : min(first + 40, last)], "…"]
    return "\n".join([*begin, *lines[max(0, last) :]])


def execute_or_record(
    values: dict[str, Any],
    *,
    connection: str | None,
    environment: Mapping[str, str] | None,
    verbose: bool,
) -> dict[str, Any]:
    """Do one of several runs of a table; if it fails, the failure is printed and becomes the run's results.

    The run's lines go to standard error; standard output is for the table or the JSON.

    Parameters
    ----------
    values : dict
        Run-config keys and values, ``output-dir`` among them.
    connection, environment, verbose
        As in :func:`execute`.

    Returns
    -------
    dict
        The content of results.json in ``output-dir``.
    """
    folder = Path(values["output-dir"])
    try:
        execute(
            values,
            connection=connection,
            environment=environment,
            verbose=verbose,
            show=lambda line: typer.echo(line, err=True),
        )
    except P2PFTError as error:
        # A run that failed after it wrote its results has failed.
        if not (folder / FILE).exists() or read_results(folder)["status"].startswith("completed"):
            status = "stopped" if isinstance(error, RunStoppedError) else "failed"
            failed = {"schema": SCHEMA, "status": status, "algorithm": values["algorithm"]}
            write_results(folder, {**failed, "error": str(error)})
        typer.echo(f"error: {error}", err=True)
    return read_results(folder)


def _values(
    settings: list[str], connection: str | None, out: Path | None, resume: str | None, *, extend: bool
) -> dict[str, Any]:
    """Return the run-config's keys and values from the command's words, after all checks.

    Raises
    ------
    P2PFTError
        When a setting, the graph, the connection or a folder cannot be used.
    """
    values = parse_settings(settings)
    if out is not None:
        values["output-dir"] = str(out.expanduser().absolute())
    if resume is not None:
        values |= parse_settings([f"resume={resume}"])
    if extend:
        values["extend"] = True
    if values.get("resume"):
        values["resume"], note = by_id(values["resume"])
        if note:
            typer.echo(note, err=True)
        values = settings_of_resumed(values, simulated=connection is None)
    config, graph = check(values, here=connection is None)
    if connection is None:
        require_place(config.runtime.output_dir)
        require_places(config.learning)
    else:
        check_connection(connection)
        check_rehearsed(connection, graph, config.runtime.min_peers)
    if config.runtime.output_dir and holds_a_run(Path(config.runtime.output_dir)):
        raise ConfigError(f"{config.runtime.output_dir} holds an earlier run; choose another folder")
    return values


def _known_of(folder: Path, run: str, config: dict[str, Any], error: str) -> dict[str, Any]:
    """Return what the journals in ``folder`` say of a run that was given up; without journals, its head."""
    told = "the run was ended before its peers had begun"
    if any((folder / PEERS).glob("peer-*.jsonl")):
        try:
            return collect_results(find_peers([folder], run), given_up=error)
        except DataError as problem:
            told = f"of the peers nothing is known: {problem}"
    typer.echo(told, err=True)
    return {**head("stopped", run, config), "views": None, "error": error, "config": config}


def _record_given_up(values: Mapping[str, Any], started: str | None) -> None:
    """Write results that say that a run simulated here was stopped; the run's processes have ended.

    The ServerApp, a thread of a simulation's process, cannot do it: Flower ends the process without notice.
    ``started`` is the run's id; None if Flower had not begun the run, and then nothing is written.
    """
    if started is None:
        return  # Flower had not begun the run
    config = RunConfig.from_mapping(values)
    folder = _folder(config, started)
    told = config.to_mapping()
    error = "the run was stopped: p2pft run, which simulated it, was ended (Ctrl-C or a signal)"
    try:
        if (folder / FILE).exists() and read_results(folder)["status"].startswith("completed"):
            return
        write_results(folder, _known_of(folder, started, told, error))
    except (OSError, DataError) as problem:
        typer.echo(f"{folder / FILE} cannot say that the run was stopped: {problem}", err=True)


def _simulate(
    values: dict[str, Any],
    cluster: RayCluster | None,
    verbose: bool,
    show: Callable[[str], None],
    started: Sequence[str],
) -> Finished:
    """Do a simulated run; if this process is told to end, record what is known of the run."""
    where = "" if cluster is None else f", for {len(cluster.cpus)} nodes of Ray's cluster {cluster.address}"
    typer.echo(f"starting Flower on this machine{where} …", err=True)
    try:
        with local_superlink("" if cluster is None else cluster.address) as environment:
            return execute(
                values, connection=None, environment=environment, verbose=verbose, show=show, cluster=cluster
            )
    except (KeyboardInterrupt, SystemExit):  # SIGTERM becomes the latter
        _record_given_up(values, started[0] if started else None)
        raise


def _try_first(
    values: dict[str, Any], do: Callable[[dict[str, Any]], Finished], *, simulated: bool
) -> Finished:
    """Do the canary of a run, and print what the whole run will take.

    Raises
    ------
    P2PFTError
        When the canary fails, or the whole run would.
    """
    few = canary_values(values)
    chosen = str(values.get("output-dir", ""))
    with own_folder(few, chosen) if simulated else contextlib.nullcontext(few) as few:
        ended = do(few)
        if ended.folder is not None:
            results = read_results(ended.folder)
            for line in verdict(results, values):
                typer.echo(line)
            require_room(results, values, ended.folder)
    kept = ended.folder if ended.folder is not None and ended.folder.exists() else None
    if chosen and not simulated:
        typer.echo(f"the canary's files are those of a run named {NAME}; {chosen} is free for the run itself")
    return replace(ended, folder=kept)


# Longer than 70 lines, since its parameters are the options that typer reads.
def run(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Run-config keys, e.g. topology=exponential:16 epochs=10; see apps/p2pft/pyproject.toml.",
            autocompletion=complete_settings,
        ),
    ] = None,
    connection: Annotated[
        str | None,
        typer.Option(
            help="A connection of Flower's config.toml; without it, this machine simulates the peers.",
            autocompletion=complete_connections,
        ),
    ] = None,
    ray_address: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="A Ray cluster that simulates the peers, on all of its nodes; this machine must be one of "
            "them, and all must share the results' folder. Without it, this machine alone.",
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results; default $P2PFT_HOME/runs/<run id> (~/.p2pft)."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Continue from a run's checkpoints: its id, name or folder. Its settings apply again.",
        ),
    ] = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="With --resume: more epochs or iterations than it had.")
    ] = False,
    canary: Annotated[
        bool,
        typer.Option(
            "--canary",
            help="Only try: two iterations over the real graph, data and evaluation, and what the whole run "
            "will take.",
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Flower's own log as well.")] = False,
) -> None:
    """Fine-tune peers over a graph and print their scores.

    Before a long run, p2pft run --canary with the same settings does everything that it will do, but two
    iterations only (of Flower's strategies a round), and says how long the run will take, what it sends, and
    what would fail. A simulation keeps nothing of it unless it fails, and leaves --out free for the run
    itself; sites keep a run that is named canary.

    p2pft run --resume RUN continues a run that was stopped or died, bit for bit. p2pft run --resume RUN
    --extend epochs=50 continues a run that has ended until it has 50 epochs in all.

    Exit codes: 0 the run completed; 1 it failed, or a canary found what would; 2 a setting or graph is wrong
    and nothing was started; 3 it completed with some of the peers: others were missing at the start
    (min-peers) or were lost later (on-failure); 4 it was stopped, by p2pft stop or flwr stop; 130 it was
    interrupted here (Ctrl-C).
    """
    try:
        if ray_address and connection is not None:
            raise ConfigError("--ray-address is for a simulation, --connection for a deployment: give one")
        values = _values(settings or [], connection, out, resume, extend=extend)
        if canary:
            canary_values(values)  # refuses what it cannot try
        cluster = look(ray_address) if ray_address else None
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    told: list[str] = []
    started: list[str] = []

    def show(line: str) -> None:
        """Print a line of the log; keep the line on the results, which this command prints at the end."""
        if (begun := STARTED_LINE.match(line)) is not None:
            started.append(begun[1])
        if RESULTS_LINE.search(line):
            told.append(line)
        else:
            typer.echo(line)

    def do(values: dict[str, Any]) -> Finished:
        if connection is None:
            return _simulate(values, cluster, verbose, show, started)
        return execute(values, connection=connection, environment=None, verbose=verbose, show=show)

    try:
        ended = _try_first(values, do, simulated=connection is None) if canary else do(values)
    except RunStoppedError as error:
        typer.echo(f"stopped: {error}", err=True)
        raise typer.Exit(EXIT_STOPPED) from None
    except P2PFTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        typer.echo("stopped: the run was given up and its processes have ended", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if ended.folder is not None:
        typer.echo(f"results: {ended.folder / FILE}")
    elif connection is not None:
        for line in told:  # on the SuperLink's machine
            typer.echo(line)
    if ended.status not in ("completed", PREFLIGHT_PASSED):
        typer.echo(f"{ended.status}: {ended.missing}", err=True)
        raise typer.Exit(EXIT_PARTIAL)

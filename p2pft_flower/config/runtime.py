"""The keys on the run itself: graph, length, transport, deadlines, checkpoints and results."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from p2pft_flower.config.bounds import require, require_bounds
from p2pft_flower.plugins import is_reference

__all__ = ["TRANSPORTS", "RuntimeConfig"]

TRANSPORTS = ("auto", "memory", "grpc")
ON_FAILURE = ("continue", "wait", "stop")
DATA_CHANGED = ("refuse", "accept")


@dataclass(frozen=True)
class RuntimeConfig:
    """The run itself: graph, length, transport, deadlines, checkpoints, and the place of the results.

    Attributes
    ----------
    topology : str
        A graph's name, an absolute path (YAML, GraphML, JSON of networkx, a CSV of edges), or a generator
        such as ``exponential:16`` (``p2pft topology list``).
    epochs : int
        Length of the run in epochs; an epoch has as many iterations as a peer's mean share of the data has
        batches.
    iterations : int
        Length of the run in iterations; 0: ``epochs`` decides.
    evaluate_every : int
        Number of iterations between two evaluations; 0: once an epoch. The last iteration is always
        evaluated. Flower's strategies are evaluated at the end of the round in which the iteration is done,
        for which the model is sent to all clients once more.
    transport : {"auto", "memory", "grpc"}
        ``auto``: in memory within a host, sockets between hosts, and 256 peers and more of one machine on one
        host; ``memory``: all peers on one host; ``grpc``: sockets even within a host.
    threads : int
        Number of torch's threads for an operation. Runs are bit-identical to each other at the same value. A
        host with all peers of a run shares them out among the machine's cores whatever the value is.
    meet_timeout : float
        Seconds after which a peer is given up that is missing, silent, or prepares without progress (an image
        read, a batch of 64 through the trunk) before the first iteration; peers that make progress are waited
        for.
    peer_timeout : float
        Seconds without a word (payload, heartbeat, answer) after which a peer is suspected, and then taken
        for lost. A slow peer that sends heartbeats is waited for. The first call that carries a payload has
        this deadline, too; if a link needs longer, each next call has twice the deadline of the one before,
        up to ``hang_timeout``.
    on_failure : {"continue", "wait", "stop"}
        The others' reaction to the loss of a peer: go on without it, wait for it first (all paused, up to
        ``rejoin_deadline``), or stop. If all peers are on one host, nobody can be lost.
    rejoin_deadline : float
        Seconds that peers wait for an agreement on the next view, or to be let in again; then they stop, with
        a checkpoint. If ``on_failure`` is ``wait``, they wait twice as long, in the first half for a lost
        peer. In a simulation no peer comes back, so this value counts as at most four times ``peer_timeout``.
    hang_timeout : float
        The most seconds that a peer may compute, or evaluate, without getting further, even with heartbeats,
        before it is taken for lost. The limit is 20 times the peer's longest stretch so far, at least
        ``peer_timeout`` and at most this value. This is also the longest deadline of a payload's call: if for
        twice as long no payload gets through, though heartbeats do, the graph does without the edge
        (``on_failure = "stop"``: the run ends).
    run_timeout : float
        Seconds after which the coordinator gives a run up; the default is a week.
    name : str
        The run's name, up to 64 letters, digits, - and _, a letter first; commands find the run by it beside
        its id; empty: none. Its folder is then called ``<name>-<run id>`` instead of ``<run id>``, unless
        ``output_dir`` chooses the folder.
    output_dir : str
        Absolute folder for the results; empty: ``$P2PFT_HOME/runs/<run id>`` (``~/.p2pft`` if that is not
        set), on SuperNodes each machine's own.
    checkpoint_every : int
        Number of iterations between two checkpoints of each peer (docs/resume.md); 0: when peers are
        evaluated, but 50 iterations apart at least; -1: no checkpoints, and the run cannot be resumed.
        Flower's strategies write one after each round, unless the value is -1.
    checkpoints_kept : int
        Number of the newest iterations of which every peer has a checkpoint.
    resume : str
        The run from whose checkpoints to go on, by its id, its name, or its folder's absolute path; empty:
        none, a new run.
    extend : bool
        Whether a run that is resumed may be longer than before.
    data_changed : {"refuse", "accept"}
        Whether a run whose peers' images have changed is not resumed, with an error that says which
        (``refuse``), or goes on with the images that are there now, which ``results.json`` tells.
    preflight_only : bool
        Whether to look at every peer and link of a deployment, print the findings, and stop before the first
        gradient.
    observer_address : str
        ``host:port`` at which the coordinator of a deployment, on the SuperLink's machine, listens to the
        peers' progress, over TLS with its certificate, and at which they reach it; empty: the coordinator
        looks at those that it can reach itself. No peer waits for the coordinator.
    tensorboard : bool
        Whether the peers' scores, and the consensus error at the coordinator, are written as TensorBoard's
        event files into the folder ``tensorboard`` of the run's folder (needs the extra ``tensorboard``).
    predictions : bool
        Whether each peer writes its answers to its test images, with the probability of each class, as CSV
        beside its tail, at its own site (docs/per-class.md). ``p2pft evaluate --predictions`` does it at any
        time later.
    callbacks : str
        What is called at each evaluation, each change of view and the end, ``my_module:MyCallback``
        (docs/extending.md has examples for Weights & Biases and MLflow); empty: nothing. It runs in a thread
        of its own in every host.
    min_peers : int
        The least number of peers with which a run on SuperNodes may start if others are missing after
        ``meet_timeout``; 0: all of the graph. With fewer peers no view goes on (``on_failure``), nor does a
        view of less than half of the view before.

    Raises
    ------
    ConfigError
        If a value cannot be used; the message names the key, the value and the right values.
    """

    topology: str = "directed-ring-4"
    epochs: int = 25
    iterations: int = 0
    evaluate_every: int = 0
    transport: str = "auto"
    threads: int = 1
    meet_timeout: float = 120.0
    peer_timeout: float = 120.0
    on_failure: str = "continue"
    rejoin_deadline: float = 600.0
    hang_timeout: float = 1800.0
    run_timeout: float = 604_800.0
    name: str = ""
    output_dir: str = ""
    checkpoint_every: int = 0
    checkpoints_kept: int = 2
    resume: str = ""
    extend: bool = False
    data_changed: str = "refuse"
    preflight_only: bool = False
    observer_address: str = ""
    tensorboard: bool = False
    predictions: bool = False
    callbacks: str = ""
    min_peers: int = 0

    def __post_init__(self) -> None:
        require(
            self.checkpoint_every >= -1,
            "checkpoint-every",
            self.checkpoint_every,
            "a whole number of iterations, 0 (when peers are evaluated) or -1 (never)",
        )
        require(
            not self.resume
            or Path(self.resume).expanduser().is_absolute()
            or re.fullmatch(r"[\w-]{1,64}", self.resume, re.ASCII) is not None,
            "resume",
            self.resume,
            "a run's id or name (letters, digits, - and _), or the absolute path of a run's folder",
        )
        require(
            re.fullmatch(r"([A-Za-z][\w-]{0,63})?", self.name, re.ASCII) is not None,
            "name",
            self.name,
            "empty, or 1 to 64 letters, digits, - and _, the first one a letter (a folder's name has it)",
        )
        require(
            not self.callbacks or is_reference(self.callbacks),
            "callbacks",
            self.callbacks,
            "empty, or my_module:MyCallback or /path/file.py:MyCallback (docs/extending.md)",
        )
        require_bounds(self)
        require(self.epochs >= 1 or self.iterations >= 1, "epochs", self.epochs, "a whole number >= 1")
        require(self.transport in TRANSPORTS, "transport", self.transport, f"one of {', '.join(TRANSPORTS)}")
        require(
            self.on_failure in ON_FAILURE, "on-failure", self.on_failure, f"one of {', '.join(ON_FAILURE)}"
        )
        require(
            self.data_changed in DATA_CHANGED,
            "data-changed",
            self.data_changed,
            f"one of {', '.join(DATA_CHANGED)}",
        )
        host, _, port = self.observer_address.rpartition(":")
        require(
            not self.observer_address
            or (bool(host) and port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 2**16),
            "observer-address",
            self.observer_address,
            "empty, or host:port, such as office.example:9100",
        )
        require(
            not self.output_dir or Path(self.output_dir).expanduser().is_absolute(),
            "output-dir",
            self.output_dir,
            "an absolute path (the process that writes runs in a folder of Flower's)",
        )

"""A problem for hosts without any model: noisy quadratics, one minimiser a peer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from p2pft_flower.algorithms.codecs import make_codec
from p2pft_flower.algorithms.compression import codec_step
from p2pft_flower.config import RunConfig
from p2pft_flower.host.host import Host
from p2pft_flower.plan import Neighbourhood, Plan, greetings, terms_digest
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View

Q = 300


@dataclass(frozen=True)
class Score:
    loss: float
    accuracy: float
    accuracy_unseen: float | None
    accuracy_seen: float | None = None


@dataclass(frozen=True)
class Validation:
    loss: float
    balanced_accuracy: float


class Peer:
    """∇L_i(θ) = θ − c_i + noise; the noise is a function of peer and position, as mini-batches are."""

    def __init__(self, peer, fail_at=None, hook=None):
        self.peer, self.fail_at, self.hook, self.drawn = peer, fail_at, hook, 0
        self.minimiser = np.random.default_rng(peer).normal(size=Q).astype(np.float32)
        self.kept = None

    def gradient(self, theta):
        if self.hook is not None:
            self.hook(self.peer, self.drawn)
        if self.fail_at == self.drawn:
            raise ValueError("no more images")
        theirs = self.batch_minimiser()
        self.drawn += 1
        return theta - theirs

    def batch_minimiser(self):
        noise = np.random.default_rng([self.peer, self.drawn]).normal(size=Q).astype(np.float32)
        return self.minimiser - np.float32(0.1) * noise

    def evaluate(self, theta):
        theta = self.kept = np.array(theta)
        return Score(float(((theta - self.minimiser) ** 2).mean()), 0.5, None)

    def validate(self, theta):
        """Return scores whose mean over the peers is best on the way, before θ comes to its optimum."""
        loss = float(((np.asarray(theta) - np.float32(0.4) * self.minimiser) ** 2).mean())
        return Validation(loss, 1 / (1 + loss))

    def privacy_spent(self):
        return None

    def position(self):
        return lambda drawn=self.drawn: {"drawn": drawn}

    def go_to(self, position, lost):
        self.drawn, self.lost = position["drawn"], lost


class Quadratics:
    """The peers' problem, as a host sees it."""

    theta0 = np.zeros(Q, dtype=np.float32)
    model_digest = "quadratics"
    model_parameters = 10 * Q
    peer = Peer

    def __init__(self, **faults):
        self.faults = faults
        self.built = {}

    def objectives(self, peers, progress):
        for p in peers:
            self.faults.get("prepare", lambda peer, progress: None)(p, progress)
        new = {p: self.peer(p, self.faults.get("fail_at", {}).get(p), self.faults.get("hook")) for p in peers}
        self.built |= new
        return new

    def named_tail(self, theta):
        return {"theta": theta.copy()}

    def metadata(self):
        return {"schema": "test"}


def plans(graph, hosts, addresses, folder, *, iterations=20, survive=False, **settings):
    """Return one plan a host; ``hosts`` is a list of lists of peers; ``survive``: the view may change."""
    config = RunConfig.from_mapping(
        {"learning-rate": 0.1, "iterations": iterations, "peer-timeout": 20.0, "meet-timeout": 20.0}
        | settings
    )
    rest = set(range(graph.n)).difference(*hosts)
    step = codec_step(make_codec(config.method.codec), config.method.codec_step, graph)
    return [
        Plan(
            run="test",
            config=config,
            n=graph.n,
            greetings=greetings(View.whole(graph), [*hosts, *([p] for p in rest)]),
            terms=terms_digest(config, View.whole(graph), iterations),
            peers=tuple(Neighbourhood.of(View.whole(graph), p, step) for p in peers),
            loss_weights=dict.fromkeys(range(graph.n), 1.0),
            iterations=iterations,
            evaluate_every=10,
            output_dir=str(folder),
            addresses=addresses,
            graph=graph.to_dict() if survive else {},
            members={min(h): tuple(h) for h in hosts} if survive else {},
            hosts={min(h): tuple(h) for h in hosts},
            codec_step=step,
            rounds=graph.diameter if config.learning.agrees else 0,
        )
        for peers in hosts
    ]


def with_settings(plan, **settings):
    """Return ``plan`` with other settings, by their run-config keys."""
    return replace(plan, config=RunConfig.from_mapping(plan.config.to_mapping() | settings))


def thetas(problems):
    """Return the last θ of every peer, (n, q)."""
    kept = {p: peer.kept for problem in problems for p, peer in problem.built.items()}
    return np.stack([kept[p] for p in sorted(kept)])


def child(plan_json, pipe):
    """Run one host in a process of its own."""
    plan, problem = Plan.from_json(plan_json), Quadratics()
    Host(plan, problem).run()
    pipe.send({p: peer.kept.tobytes() for p, peer in problem.built.items()})


GRAPH = Graph.load("lopsided-4")

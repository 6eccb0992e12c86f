"""Hosts whose weights change or whose payloads travel meanwhile: the same bits, resumed, through views."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from p2pft_flower.algorithms import simulate
from p2pft_flower.errors import DataError
from p2pft_flower.host.host import Host, PeerFailedError
from p2pft_flower.host.wires import Access
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import scheduled

from ..transport.federation import Federation as Certificates
from .hosts import ALONE, FOLDED, RING, best, lose_and_let_in, run_together, tcp, unix, until
from .quadratic import Peer, Quadratics, plans, thetas
from .test_keeper import going_on, keeping, run_all

EXPONENTIAL = scheduled(Graph.load("directed-ring-4"), "one-peer-exponential")
rng = np.random.default_rng(5)
LOPSIDED = EXPONENTIAL.in_turn(
    [np.eye(4) + np.roll(np.eye(4), jump, 0) * rng.uniform(0.3, 3, (4, 1)) for jump in (1, 3, 2)], "lopsided"
)
"""Neither rows nor columns of its weights are balanced, and no turn alone connects the peers."""

LOCAL = {"algorithm-options": "local-steps=3"}
PIPELINED = {**LOCAL, "pipelined": True, "learning-rate": 0.02}


def train(graph, folder, hosts, addresses, accesses=None, **settings):
    problems = [Quadratics() for _ in hosts]
    results = run_together(plans(graph, hosts, addresses, folder, **settings), problems, accesses)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return thetas(problems), [outcome for result in results for outcome in result]


@pytest.mark.parametrize("graph", [EXPONENTIAL, LOPSIDED], ids=["exponential", "lopsided"])
@pytest.mark.parametrize("codec", ["none", "q4"])
@pytest.mark.parametrize("how", [LOCAL, PIPELINED], ids=["in turn", "pipelined"])
def test_theta_is_bit_identical_in_memory_over_unix_sockets_tcp_and_tls(how, codec, graph, tmp_path, short):
    settings = {"codec": codec, "iterations": 13, **how}
    memory, _ = train(graph, tmp_path / "memory", [[0, 1, 2, 3]], {}, **settings)
    certificates = Certificates(tmp_path / "certificates")
    for name, hosts, addresses, accesses in (
        ("unix", FOLDED, unix(short), None),
        ("tcp", ALONE, tcp(), None),
        ("tls", ALONE, tcp(), [Access(credentials=certificates[p]) for p in range(4)]),
    ):
        theta, _ = train(graph, tmp_path / name, hosts, addresses, accesses, **settings)
        np.testing.assert_array_equal(theta, memory)


@pytest.mark.parametrize(
    ("method", "codec"),
    [("p2pft", "none"), ("push-diging", "q4"), ("sgp", "none"), ("momentum-tracking", "q4")],
)
def test_a_host_computes_what_the_simulation_in_memory_does(method, codec, tmp_path):
    run = simulate(
        method,
        LOPSIDED,
        [Peer(p).gradient for p in range(4)],
        Quadratics.theta0,
        alpha=0.1,
        iterations=20,
        codec=codec,
    )
    theta, _ = train(LOPSIDED, tmp_path, [[0, 1, 2, 3]], {}, algorithm=method, codec=codec)
    np.testing.assert_array_equal(theta, run.theta)


def test_a_single_turn_is_the_static_graph(tmp_path):
    alone = RING.in_turn([RING.W], "alone")
    gradients = [Peer(p).gradient for p in range(4)]
    run = simulate("p2pft", alone, gradients, Quadratics.theta0, alpha=0.1, iterations=20, codec="q3")
    for name, graph in (("turn", alone), ("static", RING)):
        theta, _ = train(graph, tmp_path / name, [[0, 1, 2, 3]], {}, codec="q3")
        np.testing.assert_array_equal(theta, run.theta)


def test_a_peer_sends_only_to_the_neighbours_of_the_iteration(tmp_path):
    _, outcomes = train(EXPONENTIAL, tmp_path, ALONE, tcp(), iterations=20)
    assert [o.bytes_sent for o in outcomes] == [20 * 2 * 1 * 4 * 300] * 4


@pytest.mark.parametrize("codec", ["none", "q4"])
@pytest.mark.parametrize("how", [LOCAL, PIPELINED], ids=["in turn", "pipelined"])
def test_a_resumed_run_is_bit_identical_to_the_uninterrupted_one(how, codec, tmp_path):
    settings = {"codec": codec, "graph": LOPSIDED, **how}
    whole = run_all(keeping(tmp_path / "whole", **settings))
    with pytest.raises(PeerFailedError):
        run_all(keeping(tmp_path / "first", **settings), [Quadratics(fail_at={1: 31})])
    rest = going_on(tmp_path / "rest", tmp_path / "first", **settings)
    assert set(rest[0].begins.values()) == {10}
    np.testing.assert_array_equal(run_all(rest), whole)


def test_a_codecs_memory_of_more_turns_than_there_are_is_refused(tmp_path):
    run_all(keeping(tmp_path / "first", codec="q4", graph=LOPSIDED))
    rest = going_on(tmp_path / "rest", tmp_path / "first", codec="q4", iterations=30)
    with pytest.raises(DataError, match=r"peer 0: its checkpoint has .*, of 1 turns"):
        run_all(rest)


@pytest.mark.parametrize(
    ("how", "codec"), [(LOCAL, "none"), (PIPELINED, "q4")], ids=["in turn", "pipelined with a codec"]
)
def test_a_lost_peer_and_one_that_comes_back_keep_the_schedule_and_the_trackers_sum_up(
    how, codec, federation
):
    net = federation(tcp(), graph=LOPSIDED, iterations=150, **{"peer-timeout": 8.0, "codec": codec, **how})
    surplus = lose_and_let_in(net)
    assert {s.view for s in surplus} == {0, 1, 2}
    assert max(s.relative for s in surplus) < 1e-4
    for p in range(4):
        assert np.abs(net.kept(p) - best(0, 1, 2, 3)).max() < 0.5


def test_payloads_are_there_before_the_gradients_of_their_iteration_are_drawn(tmp_path):
    """Every host waits, in the gradient itself, for what the others have sent: without overlap none comes."""
    hosts = {}

    def hook(peer, drawn):
        if drawn > 1:  # the first gradient is the start's
            edge = ((peer - 1) % 4, peer)
            until(lambda: hosts[peer]._training.session.inbox.pending(edge) == 1, 20)

    problems = [Quadratics(hook=hook) for _ in ALONE]
    made = plans(RING, ALONE, tcp(), tmp_path, pipelined=True, iterations=5)
    hosts |= {p: Host(plan, problem) for p, (plan, problem) in enumerate(zip(made, problems, strict=True))}
    with ThreadPoolExecutor(4) as pool:
        outcomes = [run.result(60) for run in [pool.submit(host.run) for host in hosts.values()]]
    assert [o.iterations for (o,) in outcomes] == [5] * 4

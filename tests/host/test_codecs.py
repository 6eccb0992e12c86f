"""Hosts that exchange encoded differences: the same bits over every way, resumed, and through other views."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from p2pft_flower.algorithms import simulate
from p2pft_flower.algorithms.compression import Memory
from p2pft_flower.errors import DataError
from p2pft_flower.host.exchange import DivergedError
from p2pft_flower.host.host import PeerFailedError
from p2pft_flower.host.wires import Access
from p2pft_flower.keeping.checkpoints import (
    checkpoint_files,
    checkpoint_folder,
    read_checkpoint,
    write_checkpoint,
)
from p2pft_flower.transport import ExchangeRefusedError
from p2pft_flower.transport.calls import Channels

from ..transport.federation import Federation as Certificates
from .hosts import ALONE, FOLDED, RING, best, lose_and_let_in, run_together, tcp, train, unix
from .quadratic import GRAPH, Peer, Quadratics, Score, plans, thetas
from .test_keeper import going_on, keeping, run_all

CODECS = ["float16", "bfloat16", "int8", "q4", "q3", "topk:0.1"]
LOCAL = {"algorithm-options": "local-steps=3"}


def no_memory(*_):
    raise OSError("there is none")


@pytest.mark.parametrize("codec", ["none", *CODECS])
def test_theta_is_bit_identical_in_memory_over_shared_memory_unix_sockets_tcp_and_tls(
    codec, tmp_path, short, monkeypatch
):
    settings = {"codec": codec, "iterations": 12, **LOCAL}
    calls, ask = Counter(), Channels.ask

    async def counted(channels, method, *arguments, **more):
        calls[method] += 1
        return await ask(channels, method, *arguments, **more)

    monkeypatch.setattr(Channels, "ask", counted)
    memory, _ = train(tmp_path / "memory", [[0, 1, 2, 3]], {}, **settings)
    assert not calls
    shared, _ = train(tmp_path / "shared", FOLDED, unix(short), **settings)
    assert calls["HandOver"] > 0
    assert calls["Deliver"] == 0
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr("p2pft_flower.transport.segments.os.memfd_create", no_memory)
        unix_, _ = train(tmp_path / "unix", FOLDED, unix(short), **settings)
    assert calls["HandOver"] == 0
    assert calls["Deliver"] > 0
    tcp_, _ = train(tmp_path / "tcp", ALONE, tcp(), **settings)
    certificates = Certificates(tmp_path / "certificates")
    problems = [Quadratics() for _ in range(4)]
    run_together(
        plans(GRAPH, ALONE, tcp(), tmp_path / "tls", **settings),
        problems,
        [Access(credentials=certificates[p]) for p in range(4)],
    )
    for theta in (shared, unix_, tcp_, thetas(problems)):
        np.testing.assert_array_equal(theta, memory)
    plain, _ = train(tmp_path / "plain", [[0, 1, 2, 3]], {}, **{**settings, "codec": "none"})
    assert np.array_equal(plain, memory) == (codec == "none")


def test_a_host_computes_what_the_simulation_in_memory_does(tmp_path):
    peers = [Peer(p) for p in range(4)]
    run = simulate(
        "p2pft",
        GRAPH,
        [peer.gradient for peer in peers],
        Quadratics.theta0,
        alpha=0.1,
        iterations=20,
        options="local-steps=3",
        codec="q4",
    )
    theta, _ = train(tmp_path, [[0, 1, 2, 3]], {}, codec="q4", **LOCAL)
    np.testing.assert_array_equal(theta, run.theta)


def test_what_is_sent_is_what_the_codec_makes_of_it(tmp_path):
    _, outcomes = train(tmp_path, [[0, 1, 2, 3]], {}, codec="q4")
    size = 2 * 2 + 300 // 2  # two blocks, two numbers a byte
    assert [o.bytes_sent for o in outcomes] == [
        20 * 2 * len(GRAPH.out_neighbours(p)) * size for p in range(4)
    ]


@pytest.mark.parametrize("codec", ["q3", "topk:0.1"])
def test_a_resumed_run_is_bit_identical_to_the_uninterrupted_one(codec, tmp_path):
    settings = {"codec": codec, **LOCAL}
    whole = run_all(keeping(tmp_path / "whole", **settings))
    with pytest.raises(PeerFailedError):
        run_all(keeping(tmp_path / "first", **settings), [Quadratics(fail_at={1: 31})])
    rest = going_on(tmp_path / "rest", tmp_path / "first", **settings)
    assert set(rest[0].begins.values()) == {10}
    np.testing.assert_array_equal(run_all(rest), whole)


def test_a_resumed_run_counts_every_gradient_that_its_neighbours_may_know_of(tmp_path):
    with pytest.raises(PeerFailedError):
        run_all(keeping(tmp_path / "first", **LOCAL), [Quadratics(fail_at={1: 31})])
    problem = Quadratics()
    run_all(going_on(tmp_path / "rest", tmp_path / "first", **LOCAL), [problem])
    plain = Quadratics()
    with pytest.raises(PeerFailedError):
        run_all(keeping(tmp_path / "plain"), [Quadratics(fail_at={1: 11})])
    run_all(going_on(tmp_path / "goes-on", tmp_path / "plain"), [plain])
    assert plain.built[0].lost > 0
    assert problem.built[0].lost == 3 * plain.built[0].lost


def test_a_lost_peer_and_one_that_comes_back_begin_the_memories_anew_and_the_trackers_sum_up(federation):
    net = federation(tcp(), iterations=150, **{"peer-timeout": 8.0, "codec": "q4", **LOCAL})
    surplus = lose_and_let_in(net)
    assert {s.view for s in surplus} == {0, 1, 2}
    assert max(s.relative for s in surplus) < 1e-4
    for p in range(4):
        assert np.abs(net.kept(p) - best(0, 1, 2, 3)).max() < 0.5


def test_a_peer_with_another_step_is_refused_before_the_first_iteration(tmp_path):
    made = plans(RING, ALONE, tcp(), tmp_path, codec="q4")
    made[1] = replace(made[1], codec_step=0.3)
    results = run_together(made, [Quadratics() for _ in range(4)])
    assert any(isinstance(result, ExchangeRefusedError) for result in results)
    assert all(isinstance(result, Exception) for result in results)


def test_a_codec_with_too_large_a_step_is_noticed_and_named(tmp_path):
    (result,) = run_together(
        plans(RING, [[0, 1, 2, 3]], {}, tmp_path, codec="topk:0.01", iterations=2000, **{"codec-step": 1.0}),
        [Quadratics()],
    )
    assert isinstance(result, DivergedError)
    assert "what its neighbours know of its vector is" in str(result)
    assert "lower codec-step (0 chooses one)" in str(result)


def test_a_payload_without_any_bytes_is_a_payload_too(tmp_path, short):
    (tmp_path / "silent.py").write_text(SILENT)
    settings = {"codec": f"{tmp_path / 'silent.py'}:Silent", "codec-step": 0.1, "iterations": 1}
    memory, _ = train(tmp_path / "memory", [[0, 1, 2, 3]], {}, **settings)
    for name, addresses in (("unix", unix(short)), ("tcp", tcp())):
        theta, outcomes = train(tmp_path / name, ALONE, addresses, **settings)
        np.testing.assert_array_equal(theta, memory)
        assert {o.bytes_sent for o in outcomes} == {0}


SILENT = """
import numpy as np


class Silent:
    def most_bytes(self, q, dtype):
        return 1

    def encode(self, vector):
        return b""

    def decode(self, payload, q, dtype):
        return np.zeros(q, dtype)
"""


def test_a_codec_whose_payloads_are_longer_than_the_vector_crosses_the_network(tmp_path):
    class Long(Quadratics):
        theta0 = np.ones(200_000, np.float32)

        class peer(Peer):  # noqa: N801 - as Quadratics names it
            def gradient(self, theta):
                self.drawn += 1
                return theta

            def evaluate(self, theta):
                self.kept = theta.copy()
                return Score(0.0, 0.5, None)

    settings = {"codec": "topk:1", "iterations": 2, "peer-timeout": 10.0}
    problems = [Long() for _ in FOLDED]
    results = run_together(plans(GRAPH, FOLDED, tcp(), tmp_path, **settings), problems)
    assert not [r for r in results if isinstance(r, Exception)]
    assert np.abs(thetas(problems)).max() < 1


def test_a_vector_that_goes_to_zero_is_no_divergence(tmp_path):
    class Vanishing(Quadratics):
        theta0 = np.random.default_rng(9).normal(size=Quadratics.theta0.size).astype(np.float32)

        class peer(Peer):  # noqa: N801 - as Quadratics names it
            def gradient(self, theta):
                self.drawn += 1
                return theta

    problem = Vanishing()
    (result,) = run_together(
        plans(GRAPH, [[0, 1, 2, 3]], {}, tmp_path, codec="topk:0.1", iterations=400), [problem]
    )
    assert not isinstance(result, Exception)
    assert np.abs(thetas([problem])).max() < 0.01


def test_peers_with_other_files_of_a_codec_refuse_each_other(tmp_path, monkeypatch):
    files = iter("ABCD")
    monkeypatch.setattr("p2pft_flower.host.session.source_digest", lambda _: next(files))
    results = run_together(
        plans(RING, ALONE, tcp(), tmp_path, codec="q4", **{"meet-timeout": 5.0}),
        [Quadratics() for _ in range(4)],
    )
    assert any("codec's file" in str(r) for r in results if isinstance(r, ExchangeRefusedError))
    assert all(isinstance(result, Exception) for result in results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {0: m[0]}, "memory of the exchanges \\[0\\], expected 2 of them a turn"),
        (
            lambda m: {**m, 1: m[1]._replace(mixed=m[1].mixed[:1])},
            "memory of exchange 1 is not of",
        ),
        (lambda m: {**m, 1: Memory(*(v.astype("f4") for v in m[1]))}, "in float64"),
    ],
    ids=["missing", "short", "float32"],
)
def test_memories_that_do_not_fit_are_refused(change, message, tmp_path):
    run_all(keeping(tmp_path / "first", codec="q4"))
    for file in checkpoint_files(checkpoint_folder(tmp_path / "first", 1)).values():
        kept, _ = read_checkpoint(file)
        if kept.memories:
            write_checkpoint(structs.replace(kept, memories=change(kept.memories)), file.parent)

    def go_on():
        for file in checkpoint_files(checkpoint_folder(tmp_path / "first", 1)).values():
            read_checkpoint(file)
        run_all(going_on(tmp_path / "rest", tmp_path / "first", codec="q4", iterations=30))

    with pytest.raises(DataError, match=message) as refused:
        go_on()
    assert "peer 1" in str(refused.value) or "peer-1" in str(refused.value)

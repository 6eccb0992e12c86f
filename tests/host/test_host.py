"""Hosts: the same θ wherever the peers live, and nothing that hangs when one of them fails."""

from __future__ import annotations

import json
import multiprocessing
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from p2pft_flower.algorithms import simulate
from p2pft_flower.config import RunConfig
from p2pft_flower.flower import host_process
from p2pft_flower.host import exchange
from p2pft_flower.host import meeting as host_meeting
from p2pft_flower.host.exchange import DivergedError, HostExchange
from p2pft_flower.host.host import Host, PeerFailedError
from p2pft_flower.host.meeting import Meeting
from p2pft_flower.host.wires import Access
from p2pft_flower.plan import Plan, greetings
from p2pft_flower.topology import Graph
from p2pft_flower.topology.views import View
from p2pft_flower.transport import (
    Credentials,
    ExchangeRefusedError,
    ExchangeStoppedError,
    ExchangeTimeoutError,
    Loss,
    PeerLostError,
    PeerUnreachableError,
    digest_of,
    meeting,
    new_key,
    stop_run,
)
from p2pft_flower.transport.trust.authority import create_authority, issue
from tests.journals import lines_of

from .hosts import ALONE, FOLDED, run_together, stopped_tail, tcp, train, unix
from .quadratic import GRAPH, Peer, Quadratics, child, plans, with_settings


@pytest.mark.parametrize("algorithm", ["p2pft", "dgd"])
def test_theta_is_bit_identical_in_memory_over_unix_sockets_and_over_tcp(algorithm, tmp_path, short):
    memory, outcomes = train(tmp_path / "m", [[0, 1, 2, 3]], {}, algorithm=algorithm)
    for name, hosts, addresses, settings in (
        ("unix, one host a peer", ALONE, unix(short), {}),
        ("unix, two peers a host", FOLDED, unix(short), {}),
        ("unix, one host with grpc inside", [[0, 1, 2, 3]], unix(short), {"transport": "grpc"}),
        ("tcp, one host a peer", ALONE, tcp(), {}),
    ):
        theta, others = train(tmp_path / name, hosts, addresses, algorithm=algorithm, **settings)
        assert theta.tobytes() == memory.tobytes(), name
        assert [o.bytes_sent for o in others] == [o.bytes_sent for o in outcomes], name

    peers = [Peer(p) for p in range(4)]
    reference = simulate(
        algorithm, GRAPH, [p.gradient for p in peers], Quadratics.theta0, alpha=0.1, iterations=20
    )
    assert reference.theta.tobytes() == memory.tobytes()


def test_theta_is_bit_identical_between_processes_over_unix_sockets(tmp_path, short):
    memory, _ = train(tmp_path / "m", [[0, 1, 2, 3]], {})
    context = multiprocessing.get_context("spawn")
    children = []
    for plan in plans(GRAPH, FOLDED, unix(short), tmp_path / "p"):
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=(plan.to_json(), theirs))
        process.start()
        children.append((process, ours))
    kept = {}
    for process, pipe in children:
        assert pipe.poll(60)
        kept |= pipe.recv()
        process.join(30)
        assert process.exitcode == 0
    assert b"".join(kept[p] for p in range(4)) == memory.tobytes()


def test_every_peer_agrees_on_the_optimum_of_all(tmp_path):
    theta, _ = train(tmp_path, [[0, 1, 2, 3]], {}, iterations=600, **{"learning-rate": 0.02})
    best = np.mean([Peer(p).minimiser for p in range(4)], axis=0)
    assert np.abs(theta - best).max() < 0.25  # the noise ball
    biased, _ = train(
        tmp_path / "dgd", [[0, 1, 2, 3]], {}, iterations=600, algorithm="dgd", **{"learning-rate": 0.02}
    )
    assert np.abs(biased - best).max() > 1.0


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_that_share_the_mixing_of_many_vectors_change_no_bit(threads, tmp_path, monkeypatch):
    alone, _ = train(tmp_path / "one", [[0, 1, 2, 3]], {}, iterations=5)
    names, plain = set(), HostExchange._mixed
    monkeypatch.setattr(exchange, "MANY", 1)
    monkeypatch.setattr(exchange, "cores", lambda: threads)

    def mixed(*given, **named):
        names.add(threading.current_thread().name)
        return plain(*given, **named)

    monkeypatch.setattr(HostExchange, "_mixed", mixed)
    found, _ = train(tmp_path / "several", [[0, 1, 2, 3]], {}, iterations=5)
    np.testing.assert_array_equal(found, alone)
    assert {name.rpartition("_")[0] for name in names} == {"p2pft-mix"}


def test_what_is_sent_is_what_the_method_costs(tmp_path):
    _, outcomes = train(tmp_path, [[0, 1, 2, 3]], {}, iterations=20)
    out_degree = [len(GRAPH.out_neighbours(p)) for p in range(4)]
    assert [o.bytes_sent for o in outcomes] == [20 * 2 * d * 300 * 4 for d in out_degree]


def test_sockets_and_their_folder_are_gone_after_a_run(tmp_path, short):
    train(tmp_path, FOLDED, unix(short))
    assert list(short.iterdir()) == []


def test_each_peer_leaves_a_log_and_its_tail(tmp_path):
    from safetensors.numpy import load_file

    theta, _ = train(tmp_path, [[0, 1, 2, 3]], {})
    for p in range(4):
        events = lines_of(tmp_path / "peers" / f"peer-{p}.jsonl")
        assert [e["event"] for e in events] == ["run", "start", *["evaluation"] * 3, "end"]
        assert [e["iteration"] for e in events[2:5]] == [0, 10, 20]
        tail = load_file(tmp_path / "peers" / f"peer-{p}.safetensors")["theta"]
        assert tail.tobytes() == theta[p].tobytes()


@pytest.mark.parametrize("hosts", [ALONE, FOLDED], ids=["alone", "folded"])
def test_a_peer_that_raises_stops_all_at_once_and_is_named_everywhere(hosts, tmp_path, short):
    problems = [Quadratics(fail_at={2: 7}) for _ in hosts]
    begin = time.monotonic()
    settings = {"peer-timeout": 60.0}
    results = run_together(plans(GRAPH, hosts, unix(short), tmp_path, **settings), problems)
    assert time.monotonic() - begin < 30  # far from the deadline: nobody waited for it
    for peers, result in zip(hosts, results, strict=True):
        if 2 in peers:
            assert isinstance(result, PeerFailedError)
            assert "peer 2, iteration 6: its gradient failed: ValueError: no more images" in str(result)
        else:
            assert isinstance(result, ExchangeStoppedError)
            assert "peer 2 stopped in iteration 6" in str(result)
            assert "no more images" in str(result)
    for p in range(4):
        last = lines_of(tmp_path / "peers" / f"peer-{p}.jsonl")[-1]
        assert last["event"] == "failed"
        assert "no more images" in last["error"]
    assert list(short.iterdir()) == []


def test_a_run_that_diverges_stops_and_says_so(tmp_path, short):
    settings = {"learning-rate": 1e6, "peer-timeout": 60.0}
    results = run_together(
        plans(GRAPH, ALONE, unix(short), tmp_path, **settings), [Quadratics() for _ in ALONE]
    )
    assert any(isinstance(r, DivergedError) and "lower learning-rate" in str(r) for r in results)
    assert all(isinstance(r, (DivergedError, ExchangeStoppedError)) for r in results)


def test_a_silent_peer_is_named_with_edge_iteration_phase_and_deadline(tmp_path, short):
    release = threading.Event()

    def hook(peer, drawn):
        if peer == 2 and drawn == 5:
            release.wait(60)

    problems = [Quadratics(hook=hook) for _ in ALONE]
    all_plans = plans(GRAPH, ALONE, unix(short), tmp_path, **{"peer-timeout": 60.0})
    # Only one deadline is short, so that it is certain whose passes first.
    all_plans[3] = with_settings(all_plans[3], **{"peer-timeout": 1.5})
    results = [None] * 4

    def run(i):
        try:
            results[i] = Host(all_plans[i], problems[i]).run()
        except Exception as error:
            results[i] = error
            if i != 2:
                release.set()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not any(t.is_alive() for t in threads)
    assert isinstance(results[3], PeerLostError)
    assert results[3].how is Loss.HANGING
    assert "peer 3, edge 2 -> 3, iteration 4, phase tau, deadline 1.5 s" in str(results[3])
    for i in (0, 1, 2):  # told by their neighbours, long before their own deadline
        assert isinstance(results[i], ExchangeStoppedError)
        assert "edge 2 -> 3" in str(results[i])


def test_a_host_that_never_comes_is_named_with_its_edge(tmp_path, short, monkeypatch):
    hello, met = meeting.Meeting._hello, set()

    async def noted(greetings, greeting, *more):
        await hello(greetings, greeting, *more)
        met.add((greeting.local, greeting.remote))

    there = {(p, q) for p in range(3) for q in (*GRAPH.in_neighbours(p), *GRAPH.out_neighbours(p)) if q < 3}
    monkeypatch.setattr(meeting.Meeting, "_hello", noted)
    # meet-timeout passes as soon as all the others have met.
    set_clock(monkeypatch, lambda: 100.0 if met >= there else 0.0)
    all_plans = plans(GRAPH, ALONE, unix(short), tmp_path, **{"meet-timeout": 60.0})[:3]
    results = run_together(all_plans, [Quadratics() for _ in all_plans])
    assert all(
        isinstance(r, (PeerUnreachableError, ExchangeTimeoutError, ExchangeStoppedError)) for r in results
    )
    text = " ".join(map(str, results))
    assert "peer 3" in text
    assert "transport = memory" in text
    assert "deadline 60 s" in text


def set_clock(monkeypatch, now):
    """Let what ``now`` returns be the time, in seconds, by which hosts are patient before the training."""
    monkeypatch.setattr(meeting, "time", SimpleNamespace(monotonic=now))


RING = Graph.load("directed-ring-4")  # peers 1 and 3 share no edge


def test_a_peer_that_prepares_longer_than_every_deadline_is_waited_for_by_all(tmp_path, short, monkeypatch):
    answer, asked, long_enough = Meeting.answer, [], threading.Event()

    def watched(own, hello):
        reply = answer(own, hello)
        if (hello.sender, hello.receiver) == (0, 3) and reply is not None:
            asked.append(hello.stage)
            if len(asked) == 8:
                long_enough.set()
        return reply

    def prepare(peer, progress):
        for _ in range(3000):
            if peer != 3 or long_enough.wait(0.02):
                return
            progress()

    monkeypatch.setattr(Meeting, "answer", watched)
    # An answer comes every 10 s by the clock that meet-timeout has, and every 0.45 s by that of peer-timeout.
    set_clock(monkeypatch, lambda: 10.0 * len(asked))
    monkeypatch.setattr(host_meeting, "_KEPT", 0.45)
    settings = {"meet-timeout": 60.0, "peer-timeout": 3.0}
    problems = [Quadratics(prepare=prepare) for _ in ALONE]
    results = run_together(plans(RING, ALONE, unix(short), tmp_path, **settings), problems)
    assert [len(result) for result in results] == [1, 1, 1, 1], results
    assert asked[:8] == [0] * 8


def test_a_peer_that_gets_stuck_while_it_prepares_is_given_up_and_named(tmp_path, short, monkeypatch):
    release, answer, asked = threading.Event(), Meeting.answer, []

    def watched(own, hello):
        reply = answer(own, hello)
        if (hello.sender, hello.receiver) == (0, 3):
            asked.append(reply)
        return reply

    monkeypatch.setattr(Meeting, "answer", watched)
    set_clock(monkeypatch, lambda: 10.0 * len(asked))  # as if each answer took 10 s
    monkeypatch.setattr(host_meeting, "_KEPT", 0.2)

    def prepare(peer, progress):
        if peer == 3:
            release.wait(60)

    def run(plan):
        try:
            return Host(plan, Quadratics(prepare=prepare)).run()
        except Exception as error:
            if plan.peers[0].peer != 3:
                release.set()
            return error

    settings = {"meet-timeout": 60.0, "peer-timeout": 60.0}
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, plans(RING, ALONE, unix(short), tmp_path, **settings)))
    assert any(isinstance(results[i], PeerUnreachableError) for i in (0, 2))
    for result in results:
        assert isinstance(result, (PeerUnreachableError, ExchangeStoppedError))
        assert "peer 3 at" in str(result)
        assert "answered PREPARING: model, data or trunk take longer" in str(result)
        assert "deadline 60 s" in str(result)


def test_peers_with_other_weights_refuse_each_other_before_the_first_iteration(tmp_path, short):
    problems = [Quadratics() for _ in ALONE]
    problems[1].model_digest = "another"
    results = run_together(plans(GRAPH, ALONE, unix(short), tmp_path), problems)
    assert all(isinstance(r, (ExchangeRefusedError, ExchangeStoppedError)) for r in results)
    assert any("another" in str(r) and "quadratics" in str(r) for r in results)
    for problem in problems:  # who agrees with all its own neighbours may have drawn τ⁰, nobody got further
        assert all(peer.drawn <= 1 for peer in problem.built.values())


def test_stop_from_another_thread_ends_the_run(tmp_path, short):
    reached = threading.Event()

    def hook(peer, drawn):
        if drawn == 3:
            reached.set()

    all_plans = plans(GRAPH, FOLDED, unix(short), tmp_path, iterations=100_000)
    hosts = [Host(plan, Quadratics(hook=hook)) for plan in all_plans]
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(host.run) for host in hosts]
        assert reached.wait(30)
        hosts[0].stop("the operator said so")
        for future in futures:
            with pytest.raises(ExchangeStoppedError, match="the operator said so"):
                future.result(30)


def started(tmp_path, addresses, pool, graph=GRAPH, busy=None, access=None):
    """Start four hosts whose run would take hours; return them once peer 2 is at its fifth gradient.

    That one takes until ``busy`` is set.
    """
    reached = threading.Event()

    def hook(peer, drawn):
        if (peer, drawn) == (2, 4):
            reached.set()
            if busy is not None:
                busy.wait(60)

    key = new_key()
    all_plans = plans(graph, ALONE, addresses, tmp_path, iterations=10_000_000, **{"peer-timeout": 60.0})
    hosts = [
        Host(replace(plan, stop_digest=digest_of(key)), Quadratics(hook=hook), own)
        for plan, own in zip(all_plans, access or [Access()] * 4, strict=True)
    ]
    futures = [pool.submit(host.run) for host in hosts]
    assert reached.wait(30)
    return hosts, futures, key


def last_lines(tmp_path):
    return [lines_of(tmp_path / "peers" / f"peer-{p}.jsonl")[-1] for p in range(4)]


def test_a_stop_passes_a_host_that_is_busy_and_closes_its_log(tmp_path, short):
    path = Graph.from_weights(np.eye(4) + np.eye(4, k=1) + np.eye(4, k=-1))
    busy = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        hosts, futures, _ = started(tmp_path, unix(short), pool, path, busy)
        hosts[0].stop("the site closes")  # the one way to peer 3 is through peer 2, whose gradient takes long
        for i in (0, 1, 3):
            with pytest.raises(
                ExchangeStoppedError, match=r"peer 0 stopped in iteration .*: the site closes"
            ):
                futures[i].result(30)
        assert not futures[2].done()
        with pytest.raises(ExchangeStoppedError, match="the site closes"):
            hosts[2].raise_if_stopped()
        hosts[2].raise_if_stopped(longer_than=3600)
        assert all(e["event"] == "failed" and "the site closes" in e["error"] for e in last_lines(tmp_path))
        busy.set()
        with pytest.raises(ExchangeStoppedError):
            futures[2].result(30)
    assert last_lines(tmp_path)[2]["event"] == "failed"


def test_whoever_shows_the_runs_key_to_one_host_stops_all(tmp_path, short):
    with ThreadPoolExecutor(4) as pool:
        _, futures, key = started(tmp_path, unix(short), pool)
        missed = stop_run("test", key, {3: unix(short)[3]}, "flwr stop", timeout=20.0)
        assert missed == {}
        for future in futures:
            with pytest.raises(ExchangeStoppedError, match=r"peer 3 stopped in iteration .*: flwr stop"):
                future.result(30)


def test_where_peers_have_certificates_the_key_is_worth_something_with_the_coordinators_only(tmp_path):
    addresses = tcp()
    for name in ("ours", "theirs"):
        create_authority(tmp_path / name, name)
    for p in (0, 1, 2, 3, 99):
        issue(tmp_path / "ours", tmp_path / str(p), p, ["127.0.0.1"])
    issue(tmp_path / "ours", tmp_path / "coordinator", "coordinator")
    issue(tmp_path / "theirs", tmp_path / "stranger", "coordinator")
    access = [Access(Credentials.load(tmp_path / str(p), p)) for p in range(4)]
    coordinator, stranger = (
        Credentials.load(tmp_path / name, "coordinator") for name in ("coordinator", "stranger")
    )
    no_neighbour = Credentials.load(tmp_path / "99")
    with ThreadPoolExecutor(4) as pool:
        hosts, futures, key = started(tmp_path, addresses, pool, access=access)
        one, neighbour = {2: addresses[2]}, access[1].credentials
        assert stop_run("test", key, one, "in plain text", timeout=2.0).keys() == {2}
        assert stop_run("test", key, one, "of another federation", stranger, timeout=2.0).keys() == {2}
        without = stop_run("test", new_key(), one, "another key", coordinator, timeout=20.0)
        assert "NOT_NEIGHBOUR" in without[2]
        by_a_peer = stop_run("test", key, one, "a peer with the key", no_neighbour, timeout=20.0)
        assert "NOT_NEIGHBOUR" in by_a_peer[2]
        by_a_neighbour = stop_run("test", key, one, "in another's name", neighbour, timeout=20.0)
        assert "NOT_AUTHENTIC" in by_a_neighbour[2]
        for host in hosts:
            host.raise_if_stopped()
        assert stop_run("test", key, one, "flwr stop", coordinator, timeout=20.0) == {}
        for future in futures:
            with pytest.raises(ExchangeStoppedError, match=r"peer 2 stopped in iteration .*: flwr stop"):
                future.result(30)


@pytest.mark.parametrize(
    ("graph", "algorithm"),
    [(GRAPH, "local"), (Graph.from_weights(np.eye(1)), "p2pft")],
    ids=["local", "a-single-peer"],
)
def test_a_deployed_host_without_neighbours_hears_a_stop_too(graph, algorithm, tmp_path, short):
    reached, key = threading.Event(), new_key()

    def hook(peer, drawn):
        if drawn == 3:
            reached.set()

    own = {0: unix(short)[0]}
    (plan, *_) = plans(
        graph, [[p] for p in range(graph.n)], own, tmp_path, iterations=10_000_000, algorithm=algorithm
    )
    host = Host(replace(plan, stop_digest=digest_of(key)), Quadratics(hook=hook))
    assert host.neighbours == ()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(host.run)
        assert reached.wait(30)
        missed = stop_run("test", key, own, "flwr stop", timeout=20.0)
        if missed:
            host.stop("the test failed")
        assert missed == {}
        with pytest.raises(ExchangeStoppedError, match="flwr stop"):
            future.result(30)


def test_a_host_without_neighbours_trains_where_it_cannot_listen_and_says_so(tmp_path, caplog, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        own = {0: f"127.0.0.1:{taken.getsockname()[1]}"}
        (plan, *_) = plans(GRAPH, ALONE, own, tmp_path, algorithm="local")
        (outcome,) = Host(replace(plan, stop_digest="0" * 64), Quadratics()).run()
    assert outcome.iterations == 20
    assert "flwr stop will not reach peers [0], which train alone: " in caplog.text


def test_peers_that_fail_leave_their_last_complete_iteration(tmp_path):
    (plan,) = plans(GRAPH, [[0, 1, 2, 3]], {}, tmp_path / "failed")
    with pytest.raises(PeerFailedError):
        Host(plan, Quadratics(fail_at={3: 5})).run()  # τ⁰ takes a gradient: this is in iteration 4
    whole, _ = train(tmp_path / "whole", [[0, 1, 2, 3]], {}, iterations=4)
    for p in range(4):
        theta, done = stopped_tail(tmp_path / "failed", p)
        assert (theta.tobytes(), done) == (whole[p].tobytes(), 4)
    assert not list((tmp_path / "whole" / "peers").glob("*.stopped.*"))


def test_peers_that_fail_before_training_leave_no_model(tmp_path):
    def prepare(peer, progress):
        raise OSError("the disk is gone")

    (plan,) = plans(GRAPH, [[0, 1, 2, 3]], {}, tmp_path)
    with pytest.raises(PeerFailedError, match="the disk is gone"):
        Host(plan, Quadratics(prepare=prepare)).run()
    assert not list((tmp_path / "peers").glob("*.safetensors"))


def test_a_model_that_cannot_be_saved_does_not_hide_why_the_peer_stopped(tmp_path, caplog, monkeypatch):
    (tmp_path / "peers" / "peer-0.stopped.safetensors").mkdir(parents=True)
    (plan,) = plans(GRAPH, [[0, 1, 2, 3]], {}, tmp_path)
    with pytest.raises(PeerFailedError, match="no more images"):
        Host(plan, Quadratics(fail_at={3: 5})).run()
    assert "peer 0: its model after 4 iterations could not be saved" in caplog.text
    assert stopped_tail(tmp_path, 1)[1] == 4


def test_a_busy_host_that_is_not_waited_for_leaves_its_last_complete_iteration(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path))
    monkeypatch.setattr(host_process, "LEAVE", 0.1)
    release = threading.Event()

    def hook(peer, drawn):
        if (peer, drawn) == (0, 5):
            # From another thread, as stops come; this one is busy.
            threading.Thread(target=host.stop, args=("the site closes",)).start()
            release.wait(60)

    (plan, *_) = plans(GRAPH, ALONE, {}, tmp_path, algorithm="local")
    host = Host(plan, Quadratics(hook=hook))
    try:
        with pytest.raises(ExchangeStoppedError, match="the site closes"):
            host_process.run_host(host, deployed=True)
        assert stopped_tail(tmp_path, 0)[1] == 5
    finally:
        release.set()


def test_nobody_stops_a_run_without_its_key(tmp_path, short):
    with ThreadPoolExecutor(4) as pool:
        hosts, futures, key = started(tmp_path, unix(short), pool)
        for wrong in (new_key(), b"", digest_of(key).encode()):
            missed = stop_run("test", wrong, unix(short), "let me in", timeout=20.0)
            assert missed.keys() == {0, 1, 2, 3}
            assert all("NOT_NEIGHBOUR" in why for why in missed.values())
        assert stop_run("other", key, {0: unix(short)[0]}, "x", timeout=20.0)[0].count("WRONG_RUN") == 1
        for host in hosts:
            host.raise_if_stopped()
        assert not any(future.done() for future in futures)
        hosts[0].stop("the test is over")
        for future in futures:
            with pytest.raises(ExchangeStoppedError, match="the test is over"):
                future.result(30)


@pytest.mark.parametrize(
    ("graph", "hosts", "rounds"),
    [
        ("exponential:64", [[p] for p in range(64)], 3),
        ("directed-ring:6", [[p] for p in range(6)], 3),
        ("directed-ring:6", [[0, 1], [2, 3], [4, 5]], 1),
        ("ring:5", [[0, 1, 2, 3, 4]], 1),
    ],
)
def test_hosts_greet_each_other_until_all_know_of_all(graph, hosts, rounds):
    assert greetings(View.whole(Graph.load(graph)), hosts) == rounds


def test_a_plan_survives_the_message_and_carries_no_more_than_neighbours(tmp_path):
    plan = plans(GRAPH, [[3]], {3: "unix:/a", 0: "unix:/b"}, tmp_path)[0]
    assert type(plan).from_json(plan.to_json()) == plan
    place = plan.peers[0]
    assert set(place.row) == {3, *GRAPH.in_neighbours(3)}
    assert set(place.column) == {3, *GRAPH.out_neighbours(3)}
    assert sum(place.row.values()) == pytest.approx(1.0)
    assert sum(place.column.values()) == pytest.approx(1.0)
    assert "unix:/a" in json.loads(plan.to_json())["plan"]["addresses"].values()
    assert replace(plan, observer="x") != plan


def test_a_host_takes_its_settings_from_the_plan_and_reads_them_no_second_time(tmp_path, short, monkeypatch):
    texts = [plan.to_json() for plan in plans(GRAPH, FOLDED, unix(short), tmp_path)]
    made = [Plan.from_json(text) for text in texts]
    monkeypatch.setattr(RunConfig, "from_mapping", None)
    assert [type(r) for r in run_together(made, [Quadratics(), Quadratics()])] == [list, list]

"""Hosts that come back: let in by a change of view, with a donor's θ; Σ τ = Σ g, the optimum of all."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import xxhash

from p2pft_flower.errors import ConfigError
from p2pft_flower.host.agreement import LostContactError
from p2pft_flower.host.host import Host, PeerFailedError
from p2pft_flower.host.session import Sessions
from p2pft_flower.host.standings import Standings
from p2pft_flower.host.training import TRACE
from p2pft_flower.host.wires import Access, Wires
from p2pft_flower.keeping import sketch
from p2pft_flower.keeping.lines import written
from p2pft_flower.plan import Plan
from p2pft_flower.topology import Graph
from p2pft_flower.transport import ExchangeStoppedError, OwnPulse, Terms, ViewChangeError, unix_address
from p2pft_flower.transport.bodies import Body
from p2pft_flower.transport.wire.header import encode_header
from tests.journals import last_life, made_line

from .hosts import ALONE, RING, best, events, tcp, until
from .quadratic import Quadratics, plans


def assert_invariant_1(folder, n):
    """Σ τ = Σ g over the peers of each view, after each iteration that all of them have completed."""
    surplus, peers = {}, {0: range(n)}
    for p in range(n):
        peers |= {e["number"]: e["peers"] for e in events(folder, p, "view")}
        for e in events(folder, p, "trace"):
            surplus.setdefault((e["view"], e["iteration"]), {})[p] = sketch.decode(e["surplus"])
    complete = {key: told for key, told in surplus.items() if set(told) >= set(peers[key[0]])}
    seen = {view for view, _ in complete}
    assert max(peers) in seen  # one that was followed by another at once may have no iteration
    assert seen <= set(peers)
    for (view, _), told in complete.items():
        total = np.sum([told[p] for p in peers[view]], axis=0)
        assert np.abs(total).max() < 1e-2, view


def test_a_host_that_crashed_and_is_started_again_trains_on_with_the_others(federation, tmp_path):
    net = federation(tcp())
    runs = [net.start(p, fail_at={2: 10}) for p in range(4)]
    with pytest.raises(PeerFailedError):
        runs[2].result(60)
    until(lambda: all(net.view_of(p) == 1 for p in (0, 1, 3)))  # else it may be back in view 1
    runs[2] = net.start(2, joining=True, hook=lambda *_: net.all_there.set())
    outcomes = [run.result(60) for run in runs]
    assert [o.iterations for (o,) in outcomes] == [120] * 4
    for p in range(4):
        assert events(tmp_path, p, "view")[-1]["peers"] == [0, 1, 2, 3]
        assert events(tmp_path, p, "view")[-1]["joined"] == [2]
        assert np.abs(net.kept(p) - best(0, 1, 2, 3)).max() < 0.3
    assert_invariant_1(tmp_path, 4)
    (lost, back), (gave_up,) = events(tmp_path, 0, "view"), events(tmp_path, 2, "failed")
    assert back["missed"] == {"2": back["iteration"] - lost["iteration"]}
    (own,) = (e for e in last_life(tmp_path / "peers" / "peer-2.jsonl") if e["event"] == "view")
    assert own["missed"] == {"2": back["iteration"] - gave_up["iteration"]}, "it has only its own journal"


def test_a_life_that_was_not_let_in_hides_nothing_of_the_one_before(federation, tmp_path):
    net = federation(tcp())
    runs = [net.start(p, fail_at={2: 30}) for p in range(4)]
    with pytest.raises(PeerFailedError):
        runs[2].result(60)
    former = events(tmp_path, 2, "evaluation")
    assert [e["iteration"] for e in former] == [0, 10, 20]
    with (tmp_path / "peers" / "peer-2.jsonl").open("ab") as log:
        log.writelines(map(written, [made_line("run", 2, run="test"), made_line("start", 2)]))
    runs[2] = net.start(2, joining=True, hook=lambda *_: net.all_there.set())
    for run in runs:
        run.result(60)
    told = [e for e in last_life(tmp_path / "peers" / "peer-2.jsonl") if e["event"] in ("evaluation", "view")]
    let_in = told[0]
    assert let_in["joined"] == [2]
    assert told[1:4] == former
    due = range(30, 121, 10)
    rest = [e["iteration"] for e in told[4:] if e["event"] == "evaluation"]
    assert rest == [k for k in due if k >= let_in["iteration"]]


def test_nobody_comes_back_to_a_run_whose_view_never_changes(tmp_path):
    (plan,) = plans(RING, [[0, 1, 2, 3]], {}, tmp_path)
    with pytest.raises(ConfigError, match="nobody can come back"):
        Host(plan, Quadratics(), joining=True)


def test_who_finds_nobody_gives_up_at_the_deadline_and_stops_no_other(federation, tmp_path):
    net = federation(tcp(), **{"rejoin-deadline": 1.0, "peer-timeout": 1.0})
    with pytest.raises(LostContactError, match="nobody has let it in for 1 s"):
        net.start(1, joining=True).result(60)


def test_a_host_that_is_started_after_the_end_of_the_run_is_told_so(federation, tmp_path):
    net = federation(tcp(), iterations=60, **{"peer-timeout": 2.0, "rejoin-deadline": 90.0})
    net.all_there.set()
    runs = [net.start(p, fail_at={2: 10}) for p in range(4)]
    with pytest.raises(PeerFailedError):
        runs[2].result(60)
    assert [runs[p].result(60)[0].iterations for p in (0, 1, 3)] == [60] * 3
    with pytest.raises(LostContactError, match=r"the run is over.*peer 0: nothing listens.*p2pft collect"):
        net.start(2, joining=True).result(60)


def views(folder, peer):
    path = folder / "peers" / f"peer-{peer}.jsonl"
    return events(folder, peer, "view") if path.is_file() else []


def test_a_host_may_crash_and_come_back_twice(federation, tmp_path):
    net = federation(tcp(), iterations=200)
    runs = [net.start(p, fail_at={2: 10}) for p in range(4)]
    with pytest.raises(PeerFailedError):
        runs[2].result(60)
    with pytest.raises(PeerFailedError):
        net.start(2, joining=True, fail_at={2: 20}).result(60)
    runs[2] = net.start(2, joining=True, hook=lambda *_: net.all_there.set())
    assert [run.result(60)[0].iterations for run in runs] == [200] * 4
    for p in range(4):
        assert events(tmp_path, p, "view")[-1]["peers"] == [0, 1, 2, 3]
        assert np.abs(net.kept(p) - best(0, 1, 2, 3)).max() < 0.3
    assert_invariant_1(tmp_path, 4)


def test_a_host_comes_back_while_another_fails(federation, tmp_path):
    net = federation(tcp(), iterations=200)
    both = threading.Event()
    fell = threading.Event()

    def fall(peer, drawn):
        if both.is_set():
            fell.set()
            raise ValueError("no more images")

    runs = [net.start(p, hook=fall if p == 0 else None, fail_at={2: 10}) for p in range(4)]
    with pytest.raises(PeerFailedError):
        runs[2].result(60)
    both.set()
    runs[2] = net.start(2, joining=True)
    with pytest.raises(PeerFailedError):
        runs[0].result(60)
    until(lambda: views(tmp_path, 2)[-1:] and views(tmp_path, 2)[-1]["peers"] == [1, 2, 3])
    net.all_there.set()
    assert [runs[p].result(60)[0].iterations for p in (1, 2, 3)] == [200] * 3
    for p in (1, 2, 3):
        assert np.abs(net.kept(p) - best(1, 2, 3)).max() < 0.3
    assert_invariant_1(tmp_path, 4)


def test_a_host_that_hung_comes_back_when_its_gradient_is_done(federation, tmp_path):
    net = federation(tcp(), iterations=200, **{"hang-timeout": 2.0, "peer-timeout": 2.0})
    stuck = threading.Event()

    def hang(peer, drawn):
        if drawn == 10:
            assert stuck.wait(60)

    runs = [net.start(p, hook=hang if p == 2 else None) for p in range(4)]
    until(lambda: all(views(tmp_path, p) for p in (0, 1, 3)))
    assert views(tmp_path, 0)[0]["peers"] == [0, 1, 3]
    stuck.set()
    until(lambda: views(tmp_path, 2))
    net.all_there.set()
    assert [run.result(60)[0].iterations for run in runs] == [200] * 4
    for p in range(4):
        assert np.abs(net.kept(p) - best(0, 1, 2, 3)).max() < 0.3
    assert_invariant_1(tmp_path, 4)


def suspended_child(plan_json, pipe):
    """Run one host in a process of its own, slowly until ``pipe`` says that all are there."""

    def paced(peer, drawn):
        if not pipe.closed and pipe.poll(0.1):
            pipe.close()

    os.environ[TRACE] = "1"
    plan, problem = Plan.from_json(plan_json), Quadratics(hook=paced)
    Host(plan, problem).run()


@pytest.mark.parametrize("on_failure", ["continue", "wait"])
def test_a_suspended_process_comes_back_beyond_the_deadline(federation, tmp_path, on_failure):
    net = federation(
        tcp(), iterations=200, **{"peer-timeout": 2.0, "on-failure": on_failure, "rejoin-deadline": 60.0}
    )
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=suspended_child, args=(net.plans[2].to_json(), there)
    )
    process.start()
    runs = {p: net.start(p) for p in (0, 1, 3)}
    logs = [tmp_path / "peers" / f"peer-{p}.jsonl" for p in range(4)]
    # All train: before that a host pauses too.
    until(lambda: all(log.is_file() and len(events(tmp_path, p, "trace")) > 1 for p, log in enumerate(logs)))
    os.kill(process.pid, signal.SIGSTOP)
    if on_failure == "continue":
        until(lambda: all(views(tmp_path, p) for p in runs))
    else:
        until(lambda: all(net.pauses(p) for p in runs))
    os.kill(process.pid, signal.SIGCONT)
    until(lambda: views(tmp_path, 2))
    net.all_there.set()
    here.send(None)
    process.join(60)
    assert process.exitcode == 0
    assert [run.result(60)[0].iterations for run in runs.values()] == [200] * 3
    for p in range(4):
        assert views(tmp_path, p)[-1]["peers"] == [0, 1, 2, 3]
    if on_failure == "wait":
        assert [view["lost"] for p in range(4) for view in views(tmp_path, p)] == [[]] * 4
    for p in runs:
        assert np.abs(net.kept(p) - best(0, 1, 2, 3)).max() < 0.3
    assert_invariant_1(tmp_path, 4)


def test_where_the_others_wait_a_host_started_again_is_in_the_next_view(federation, tmp_path):
    net = federation(tcp(), **{"on-failure": "wait", "rejoin-deadline": 60.0})
    runs = [net.start(p, fail_at={2: 10}) for p in range(4)]
    with pytest.raises(PeerFailedError):
        runs[2].result(60)
    runs[2] = net.start(2, joining=True, hook=lambda *_: net.all_there.set())
    assert [run.result(60)[0].iterations for run in runs] == [120] * 4
    for p in (0, 1, 3):
        assert [(e["peers"], e["joined"]) for e in events(tmp_path, p, "view")] == [([0, 1, 2, 3], [2])]
        assert np.abs(net.kept(p) - best(0, 1, 2, 3)).max() < 0.3
    assert_invariant_1(tmp_path, 4)


def test_when_the_donor_dies_while_it_is_asked_the_next_view_has_another(federation, tmp_path):
    net = federation(tcp(), iterations=200, **{"hang-timeout": 60.0})
    without_donor = threading.Event()

    def back(peer):
        return any(change.joined == (2,) for change in net.hosts[peer].views)

    def fall(peer, drawn):
        if back(peer):
            raise ValueError("no more images")

    def hold(peer, drawn):  # no vector from it before the donor is gone
        if back(peer):
            assert without_donor.wait(60)

    hooks = {0: hold, 1: fall, 3: hold}
    runs = [net.start(p, hook=hooks.get(p), fail_at={2: 10}) for p in range(4)]
    with pytest.raises(PeerFailedError):
        runs[2].result(60)
    runs[2] = net.start(2, joining=True)
    with pytest.raises(PeerFailedError):
        runs[1].result(60)
    until(lambda: views(tmp_path, 2)[-1:] and views(tmp_path, 2)[-1]["peers"] == [0, 2, 3])
    assert len(events(tmp_path, 2, "trace")) <= 10  # of its first life: it has no vector yet
    without_donor.set()
    net.all_there.set()
    assert [runs[p].result(60)[0].iterations for p in (0, 2, 3)] == [200] * 3
    for p in (0, 2, 3):
        assert np.abs(net.kept(p) - best(0, 2, 3)).max() < 0.3
    assert_invariant_1(tmp_path, 4)


def test_who_is_none_of_the_run_is_not_let_in(federation, tmp_path, short):
    addresses = tcp()
    net = federation(addresses)
    addresses |= {4: unix_address("stranger", 4, short)}
    short_wait = {"rejoin-deadline": 1.5, "peer-timeout": 1.0}
    hosts = [[p] for p in range(5)]
    graph = Graph.load("directed-ring:5")
    *_, stranger = plans(graph, hosts, addresses, tmp_path / "stranger", survive=True, **short_wait)
    runs = [net.start(p) for p in range(4)]
    until(lambda: (tmp_path / "peers" / "peer-0.jsonl").is_file() and events(tmp_path, 0, "trace"))
    with pytest.raises(LostContactError, match=r"nobody has let it in for 1\.5 s"):
        Host(stranger, Quadratics(), joining=True).run()
    # Nor is a peer of the graph that says it is of another run.
    other = plans(RING, ALONE, net.plans[2].addresses, tmp_path / "other", survive=True, **short_wait)[2]
    moved = replace(other, run="another", addresses=other.addresses | {2: addresses[4]})
    with pytest.raises(LostContactError, match=r"nobody has let it in for 1\.5 s"):
        Host(moved, Quadratics(), joining=True).run()
    net.all_there.set()
    assert [run.result(60)[0].iterations for run in runs] == [120] * 4
    assert [views(tmp_path, p) for p in range(4)] == [[]] * 4


def test_a_plan_without_its_own_peer_among_the_members_is_refused(tmp_path):
    plan = plans(RING, ALONE, tcp(), tmp_path, survive=True)[2]
    plan = replace(plan, members={0: (0,), 1: (1,), 3: (3,)})
    before = set(threading.enumerate())
    with pytest.raises(ConfigError, match=r"peers \[2\] are no member of run test, whose members are"):
        Host(plan, Quadratics(), joining=True).run()
    assert set(threading.enumerate()) <= before


def test_who_is_stopped_before_it_is_let_in_stops_nobody_else(federation, tmp_path):
    net = federation(tcp())
    preparing, goes_on = threading.Event(), threading.Event()

    def prepare(peer, progress):
        preparing.set()
        assert goes_on.wait(60)

    runs = [net.start(p, fail_at={2: 10}) for p in range(4)]
    with pytest.raises(PeerFailedError):
        runs[2].result(60)
    runs[2] = net.start(2, joining=True, prepare=prepare)
    assert preparing.wait(60)
    net.hosts[2].stop("Ctrl-C")
    goes_on.set()
    with pytest.raises(ExchangeStoppedError, match="Ctrl-C"):
        runs[2].result(60)
    net.all_there.set()
    assert [runs[p].result(60)[0].iterations for p in (0, 1, 3)] == [120] * 3
    assert [[view["peers"] for view in views(tmp_path, p)] for p in (0, 1, 3)] == [[[0, 1, 3]]] * 3


def test_after_a_stop_the_others_know_how_far_a_peer_came_that_was_let_in(federation, tmp_path):
    net, trains, goes_on = federation(tcp()), threading.Event(), threading.Event()

    def hold(peer, drawn):
        net.all_there.set()
        if drawn > 40 and net.hosts[2].views:
            trains.set()
            assert goes_on.wait(60)

    runs = [net.start(p, fail_at={2: 10}) for p in range(4)]
    with pytest.raises(PeerFailedError):
        runs[2].result(60)
    runs[2] = net.start(2, joining=True, hook=hold)
    assert trains.wait(60)
    until(lambda: [h.iteration > 0 and h.report is not None for h in net.hosts[1].heard] == [True])
    assert not net.hosts[1].heard[0].stopped
    net.hosts[0].stop("the test is over")
    goes_on.set()
    for run in runs:
        with pytest.raises(ExchangeStoppedError, match="the test is over"):
            run.result(60)
    for p in (0, 1, 3):
        (heard,) = net.hosts[p].heard
        assert (heard.peer, heard.stopped) == (2, p != 0), "peer 0 of the ring is no neighbour of peer 2"
        assert heard.report.accuracy is not None
    assert net.hosts[2].heard == []


def test_a_host_that_was_started_again_refuses_what_was_sent_to_its_former_life(tmp_path):
    # In view 0 as well: an answer that it does not fit here would end the sender's run.
    plan = plans(RING, ALONE, tcp(), tmp_path, survive=True)[2]
    session = Sessions(plan, np.zeros(4, np.float32), ("theta", "tau"), "digest", always=False).first()
    hooks = {"on_hello": lambda _: None, "on_stop": lambda _: None, "pulse": OwnPulse()}
    hooks["standings"] = Standings(plan.run, 2, plan.hosts, plan.iterations, None)
    wires = Wires(plan, session, Access(), joining=True, **hooks)
    payload = np.zeros(4, dtype="<f4").tobytes()
    header = encode_header(
        Terms(plan.run, 4), (1, 2), 66, 1, share=1.0, payload_hash=xxhash.xxh3_64_intdigest(payload)
    )
    try:
        with pytest.raises(ViewChangeError, match="in no view yet"):
            asyncio.run(session.mailbox.deliver([(header, Body(payload))], 1.0))
    finally:
        wires.close()

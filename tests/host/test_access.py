"""A host's certificates, its bind address, and plain text: the machine decides, not the plan."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from p2pft_flower.errors import ConfigError
from p2pft_flower.host.host import Host
from p2pft_flower.host.wires import Access
from p2pft_flower.plan import Plan
from p2pft_flower.transport import ExchangeRefusedError, ExchangeStoppedError, PeerUnreachableError
from tests.transport.federation import Federation

from .hosts import ALONE, tcp, train
from .quadratic import GRAPH, Quadratics, plans, thetas


@pytest.fixture(scope="module")
def north(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("north"))


def run(all_plans, accesses):
    """Run one host a peer; return the problems and what each host returned or raised."""
    problems = [Quadratics() for _ in all_plans]

    def one(plan, problem, access):
        try:
            return Host(plan, problem, access).run()
        except Exception as error:  # the tests look at it
            return error

    with ThreadPoolExecutor(len(all_plans)) as pool:
        return problems, list(pool.map(one, all_plans, problems, accesses))


def test_theta_is_bit_identical_over_tls_and_in_memory(north, tmp_path):
    memory, _ = train(tmp_path / "memory", [[0, 1, 2, 3]], {})
    all_plans = plans(GRAPH, ALONE, tcp(), tmp_path / "tls")
    problems, ends = run(all_plans, [Access(north[i]) for i in range(4)])
    assert [type(end) for end in ends] == [list] * 4
    assert thetas(problems).tobytes() == memory.tobytes()


def test_a_peer_may_listen_elsewhere_than_its_neighbours_connect_to(tmp_path):
    """As behind a network's address translation; here, on every interface and not on one."""
    addresses = tcp()
    all_plans = plans(GRAPH, ALONE, addresses, tmp_path)
    everywhere = [f"0.0.0.0:{a.rpartition(':')[2]}" for _, a in sorted(addresses.items())]
    _, ends = run(all_plans, [Access(insecure=True, bind_address=a) for a in everywhere])
    assert [type(end) for end in ends] == [list] * 4


def test_a_host_with_certificates_of_another_federation_ends_the_run_before_the_first_iteration(
    north, tmp_path
):
    south = Federation(tmp_path / "south", "south")
    all_plans = plans(GRAPH, ALONE, tcp(), tmp_path / "out", **{"meet-timeout": 5.0})
    problems, ends = run(all_plans, [Access(f[i]) for i, f in enumerate((north, north, north, south))])
    # Who was still starting when the others gave up finds nobody any more.
    assert {type(end) for end in ends} <= {ExchangeRefusedError, ExchangeStoppedError, PeerUnreachableError}
    refused = [str(end) for end in ends if isinstance(end, ExchangeRefusedError)]
    assert refused
    assert all("no TLS with peer" in text for text in refused)
    assert all(peer.drawn <= 1 for problem in problems for peer in problem.built.values())


def test_certificates_are_those_of_the_one_peer_that_runs_here(north, tmp_path):
    wrong, *_ = plans(GRAPH, ALONE, tcp(), tmp_path)
    with pytest.raises(ConfigError, match=r"are peer 1's, but this host runs the peers \[0\]"):
        Host(wrong, Quadratics(), Access(north[1])).run()
    several, *_ = plans(GRAPH, [[0, 1], [2, 3]], tcp(), tmp_path / "b")
    with pytest.raises(ConfigError, match=r"runs the peers \[0, 1\]: each peer needs a host"):
        Host(several, Quadratics(), Access(north[1])).run()
    with pytest.raises(ConfigError, match=r"'0\.0\.0\.0:9000' is for one peer, not for"):
        Host(several, Quadratics(), Access(bind_address="0.0.0.0:9000")).run()


def test_without_certificates_nothing_leaves_this_machine(tmp_path):
    addresses = tcp() | {1: "192.0.2.1:9000"}
    plan, *_ = plans(GRAPH, ALONE, addresses, tmp_path)
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:9000 is not on this machine"):
        Host(plan, Quadratics()).run()


def test_certificates_and_plain_text_exclude_each_other(north):
    with pytest.raises(ConfigError, match="exclude each other"):
        Access(north[0], insecure=True)


def test_what_is_a_machines_own_is_in_no_plan(tmp_path):
    plan, *_ = plans(GRAPH, ALONE, tcp(), tmp_path)
    assert not {"credentials", "certificates", "insecure", "bind_address"} & vars(plan).keys()
    assert Plan.from_json(plan.to_json()) == replace(plan)

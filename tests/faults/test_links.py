"""Links that are cut, slow, or do harm to what they carry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pft_flower.lab.ports import free_addresses
from p2pft_flower.lab.relay import Relays
from tests.faults.federation import PATIENT, Fault, Federation, injects
from tests.faults.peer import Orders
from tests.namespaces.network import Network, missing

HELD = Orders(hold=("gradient 20",))
SLOW = Orders(slow_from=20)
WHY_NOT = missing()
networks = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "network namespaces can be made")


@injects(Fault.LINK_CUT_ONE_WAY)
def test_when_a_link_goes_dead_one_way_nobody_is_lost_and_the_graph_does_without_it(tmp_path):
    addresses = free_addresses(6)
    with Relays() as relays:
        link = relays.link(addresses, 2, 3)
        with Federation(tmp_path, addresses=addresses, routes=link.routes, orders={3: HELD}) as peers:
            peers.hold(3, "gradient 20")
            link.cut(2)
            peers.release(3)
            ended = peers.ended()
            peers.check_survivors(peers.peers, ended)
            peers.check_told(peers.peers, {})
            assert [2, 3] not in peers.views(0)[0]["edges"]


class Hosts:
    """Six peers on hosts of their own in a network."""

    def __init__(self, net, folder, orders, **settings):
        self.net = net
        orders = {p: replace(orders.get(p, Orders()), namespace=net.name(p)) for p in range(6)}
        addresses = {p: f"{net.address(p)}:9000" for p in range(6)}
        self.peers = Federation(folder, addresses=addresses, orders=orders, **settings)


@networks
@injects(Fault.LINK_CUT_BOTH_WAYS, Fault.LINK_CUT_ONE_WAY)
@pytest.mark.parametrize("ways", ["one", "both"])
def test_when_packets_between_two_machines_are_lost_nobody_else_is(ways, tmp_path):
    with Network(6) as net, Hosts(net, tmp_path, {3: HELD}).peers as peers:
        peers.hold(3, "gradient 20")
        net.cut_one_way(2, 3)
        if ways == "both":
            net.cut_one_way(3, 2)
        peers.release(3)
        ended = peers.ended()
        peers.check_survivors(peers.peers, ended)
        peers.check_told(peers.peers, {})
        assert [2, 3] not in peers.views(0)[0]["edges"]


@networks
@injects(Fault.CUT_OFF)
def test_when_a_machine_is_off_the_network_it_is_called_cut_off_and_stops_alone(tmp_path):
    settings = {"rejoin-deadline": 5.0, "checkpoint_every": 10}
    with Network(6) as net, Hosts(net, tmp_path, {3: HELD}, **settings).peers as peers:
        peers.hold(3, "gradient 20")
        net.cut(3)
        peers.release(3)
        ended = peers.ended()
        survivors = [0, 1, 2, 4, 5]
        peers.check_survivors(survivors, ended)
        peers.check_told(survivors, {3: "cannot be reached"})
        assert "no agreement for 5 s" in ended[3].error
        peers.check_kept(3)


@networks
@injects(Fault.CUT_OFF)
def test_when_a_machine_is_back_on_the_network_its_peer_comes_back(tmp_path):
    orders = dict.fromkeys(range(6), SLOW) | {3: replace(SLOW, hold=("gradient 20",))}
    with Network(6) as net, Hosts(net, tmp_path, orders, iterations=240).peers as peers:
        peers.hold(3, "gradient 20")
        net.cut(3)
        peers.release(3)
        survivors = [0, 1, 2, 4, 5]
        peers.await_view(survivors, survivors)
        net.restore(3)
        peers.await_view(peers.peers, peers.peers)
        peers.hurry(*peers.peers)
        peers.check_survivors(peers.peers, peers.ended())
        peers.check_told(survivors, {3: "cannot be reached"})


@networks
@injects(Fault.PARTITION)
def test_of_two_halves_the_one_with_the_lowest_peer_goes_on_and_the_other_comes_back(tmp_path):
    orders = dict.fromkeys(range(6), SLOW) | {3: replace(SLOW, hold=("gradient 20",))}
    low, high = [0, 1, 2], [3, 4, 5]
    with Network(6) as net, Hosts(net, tmp_path, orders, iterations=240).peers as peers:
        peers.hold(3, "gradient 20")
        net.part(*high)
        peers.release(3)
        peers.await_view(low, low)
        assert [peers.views(p) for p in high] == [[], [], []]
        net.heal(*high)
        peers.await_view(peers.peers, peers.peers)
        peers.hurry(*peers.peers)
        peers.check_survivors(peers.peers, peers.ended())  # and that a view of one number has the same peers
        told = {view["number"]: view["peers"] for p in peers.peers for view in peers.views(p)}
        assert told[1] == low  # what was agreed on while the network was in two


@injects(Fault.SLOW_LINK)
def test_a_slow_link_changes_nothing(tmp_path):
    addresses = free_addresses(6)
    with Relays() as relays:
        routes = relays.link(addresses, 2, 3, delay=0.05).routes
        with Federation(tmp_path, addresses=addresses, routes=routes, iterations=20, **PATIENT) as peers:
            peers.check_same(peers.ended())


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(harm, marks=injects(fault))
        for harm, fault in {
            "corrupt": Fault.CORRUPTED,
            "duplicate": Fault.DUPLICATED,
            "reorder": Fault.REORDERED,
            "replay": Fault.REPLAYED,
        }.items()
    ],
)
def test_payloads_that_are_altered_or_come_twice_early_or_late_are_used_once_and_in_order(harm, tmp_path):
    with Federation(tmp_path, orders={2: Orders(payloads=harm)}, **PATIENT) as peers:
        peers.check_same(peers.ended())
        assert ("harmed",) in peers.said(2)
        if harm in ("corrupt", "replay"):
            assert "refused a message on edge 2 -> 3" in peers.log(3)

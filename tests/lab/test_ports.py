"""Ports of this machine that are given to peers and servers."""

from __future__ import annotations

from p2pft_flower.lab.ports import free_ports

RAYS = range(10_002, 20_000)  # for its workers; `ray start` refuses a port of its own among them
LINUXS = range(32_768, 61_000)  # for outgoing connections


def test_ports_are_none_of_those_that_ray_or_linux_give_to_others():
    ports = set(free_ports(300))
    assert len(ports) == 300
    assert not ports & {*RAYS, *LINUXS}

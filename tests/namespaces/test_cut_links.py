"""A link that is cut and restored, between processes on hosts of their own."""

from __future__ import annotations

import json

import pytest

from tests.namespaces.network import Network, missing

WHY_NOT = missing()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "network namespaces can be made")


@pytest.mark.parametrize("ways", ["both", "one"])
def test_a_peer_behind_a_cut_link_is_called_cut_off_until_the_link_is_back(ways):
    with Network(2) as net:
        peers = [net.start(i, "-m", "tests.namespaces.heart", str(i)) for i in range(2)]

        def each_says():
            return [json.loads(peer.stdout.readline()) for peer in peers]

        assert each_says() == [{"hears": 1}, {"hears": 0}]
        if ways == "both":
            net.cut(1)
        else:
            net.cut_one_way(1, 0)
        lost = each_says()
        assert [(said["lost"], said["how"]) for said in lost] == [(1, "cut off"), (0, "cut off")], lost
        assert "10.77.0.2:9000 cannot be reached" in lost[0]["error"]
        if ways == "both":
            net.restore(1)
        else:
            net.restore_one_way(1, 0)
        assert each_says() == [{"back": 1, "lost": False}, {"back": 0, "lost": False}]

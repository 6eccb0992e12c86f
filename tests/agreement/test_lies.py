"""What one member of three that lies in its record cannot do to the two that do not."""

from __future__ import annotations

import pytest

from p2pft_flower.agreement.record import Ballot, Composition, Phase, Proposal, Record
from p2pft_flower.host.records import decode, encode
from p2pft_flower.topology import Graph

from .machine import Machine

GROUPS = {m: (m,) for m in range(3)}
GRAPH = Graph.load("complete:3")
ROUND = 1.0
VIEW = Composition(1, (0, 1, 2), (0, 0, 0))
LAST = 2**63  # no number of a record is greater


def changing(**says):
    return Record(2, 0, version=1, phase=Phase.CHANGING, **says)


LIES = {
    "the last ballot of all": changing(promised=Ballot(LAST, 2), proposal=Proposal(Ballot(LAST, 2))),
    "a view under it": changing(promised=Ballot(LAST, 2), proposal=Proposal(Ballot(LAST, 2), VIEW)),
    "a view accepted under it": changing(promised=Ballot(LAST, 2), accepted=Proposal(Ballot(LAST, 2), VIEW)),
    "a ballot far ahead": changing(promised=Ballot(2**31, 2), proposal=Proposal(Ballot(2**31, 2))),
    "one as far ahead as is heeded": changing(promised=Ballot(2**20, 2), proposal=Proposal(Ballot(2**20, 2))),
    "a ballot that it never ends": changing(promised=Ballot(1, 2), proposal=Proposal(Ballot(1, 2))),
    "it misses the others": changing(suspects=(0, 1)),
}


@pytest.mark.parametrize("name", LIES)
def test_the_others_agree_whatever_it_says_once(name):
    lie = decode(encode(LIES[name]), GROUPS, 100)  # within the bounds
    honest = [Machine.born(m, GRAPH, GROUPS, ROUND, 1000.0) for m in (0, 1)]
    for machine in honest:
        machine.hear([lie], 0.0)
    for tick in range(1, 120):
        for one, other in (honest, honest[::-1]):
            one.tick(float(tick))
            # As it comes over the wire: what is beyond the bounds is refused there.
            one.hear([decode(encode(r), GROUPS, 100) for r in other.news(one.me)], float(tick), other.steps)
    assert {m.view.number for m in honest} == {1}
    assert honest[0].view == honest[1].view

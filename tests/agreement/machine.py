"""One member whose state goes on from event to event."""

from __future__ import annotations

from p2pft_flower.agreement import gossip, member
from p2pft_flower.agreement.events import (
    Completed,
    Finished,
    Heard,
    Left,
    Missed,
    Reached,
    Rejoining,
    TimePassed,
    Useless,
)
from p2pft_flower.agreement.rules import Rules
from p2pft_flower.agreement.state import begin, join


class Machine:
    """A state, and the effects of the last event."""

    def __init__(self, state):
        self.state, self.effects = state, ()

    @classmethod
    def born(cls, me, graph, groups, round_time, patience, *, wait=False, joining=False, incarnation=0):
        rules = Rules(graph, groups, round_time, patience, wait)
        return cls(join(rules, me, incarnation) if joining else begin(rules, me))

    def after(self, event, now=0.0):
        """Take in ``event``; return whether the state is another one."""
        before = self.state
        self.state, self.effects = member.step(before, event, now)
        return self.state != before

    def __getattr__(self, name):
        return getattr(self.state, name)

    def complete(self, iteration):
        return self.state.trains and (self.after(Completed(iteration)) or True)

    def finish(self):
        self.after(Finished())

    def leave(self, reason):
        self.after(Left(reason))

    def suspect(self, other, now, *, hanging=False):
        self.after(Missed(other, hanging), now)

    def heard_again(self, other, now):
        self.after(Heard((), speaker=other), now)

    def do_without(self, edge, now):
        return self.after(Useless(edge), now)

    def rejoin(self, now, iteration=0):
        self.after(Rejoining(iteration), now)

    def reach(self, members, now):
        self.after(Reached(tuple(members)), now)

    def tick(self, now):
        self.after(TimePassed(), now)

    def hear(self, records, now, steps=(), speaker=None, known=None):
        return self.after(Heard(tuple(records), tuple(steps), speaker, known or {}), now)

    def contacts(self):
        return gossip.contacts(self.state)

    def near(self):
        return gossip.near(self.state)

    def news(self, other):
        return gossip.news(self.state, other)

    def steps_for(self, other):
        return gossip.steps(self.state, other)

    @property
    def said(self):
        """What it says that it knows."""
        return gossip.known(self.state)

    def neighbourhood(self):
        return self.state.rules.view(self.state.view.members, self.state.view.broken)

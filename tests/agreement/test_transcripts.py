"""The protocol's stories, as transcripts: under each command stands what comes of it.

A transcript (``transcripts/*.txt``) is read from top to bottom. A line that begins with ``>`` is a command;
the lines below it are the answer: what each member's record says afterwards, its effects, its next view, and
why it gives up, if new.
``P2PFT_TRANSCRIPTS=write`` writes the answers anew; read the difference before it is committed.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from p2pft_flower.agreement.events import Effect, Left, Rejoining
from p2pft_flower.agreement.rules import Rules
from p2pft_flower.agreement.state import begin, join
from p2pft_flower.topology import Graph

from .machine import Machine

FOLDER = Path(__file__).with_name("transcripts")
ROUND, PATIENCE = 1.0, 20.0


class Story:
    """Members of one run, and one clock."""

    def __init__(self):
        self.now, self.members, self.lives = 0.0, {}, {}

    def obey(self, command):
        """Obey ``command``; return the lines of the answer."""
        before = {m: (machine.state.record, machine.state.view) for m, machine in self.members.items()}
        self.did = {}
        self._obey(command.split())
        return [
            line
            for m, machine in sorted(self.members.items())
            if self.did.get(m) or before.get(m) != (machine.state.record, machine.state.view)
            for line in self.lines(m, machine)
        ]

    def _obey(self, words):
        match words:
            case ["begin", graph, *wait]:
                graph = Graph.load(graph)
                groups = {p: (p,) for p in range(graph.n)}
                self.rules = Rules(graph, groups, ROUND, PATIENCE, wait == ["wait"])
                self.members = {p: Machine(begin(self.rules, p)) for p in range(graph.n)}
                self.did = {m: [] for m in self.members}
            case [m, "misses", other]:
                self.do(m, lambda it: it.suspect(int(other), self.now))
            case [m, "has", "completed", k]:
                self.do(m, lambda it: it.complete(int(k)))
            case [m, "leaves"]:
                self.do(m, lambda it: it.after(Left("its disk is full"), self.now))
            case [m, "dies"]:
                del self.members[int(m)]
            case [m, "is", "started", "again"]:
                self.lives[int(m)] = self.lives.get(int(m), 0) + 1
                self.members[int(m)] = Machine(join(self.rules, int(m), self.lives[int(m)]))
                self.do(m, lambda it: it.tick(self.now))
            case [m, "asks", "again"]:
                self.do(m, lambda it: it.after(Rejoining(it.record.iteration), self.now))
            case [m, "reaches", *others]:
                self.do(m, lambda it: it.reach([int(o) for o in others], self.now))
            case ["wait", seconds]:
                steps = math.ceil(
                    float(seconds) / ROUND
                )  # one at once, and all would think that they had slept
                for _ in range(steps):
                    self.now += float(seconds) / steps
                    for m in sorted(self.members):
                        self.do(m, lambda it: it.tick(self.now))
            case ["gossip", *among]:
                self.gossip([int(m) for m in among] or sorted(self.members))
            case [m, "hears", other]:
                self.hear(int(m), int(other))
            case _:
                raise ValueError(f"no command: {' '.join(words)}")

    def gossip(self, among):
        """Let all of them hear each other until nobody has anything new to say."""
        while True:
            before = {m: self.members[m].state for m in among}
            for m in among:
                for other in among:
                    if other != m:
                        self.hear(m, other)
            if all(self.members[m].state.record == before[m].record for m in among):
                return

    def hear(self, m, other):
        two = self.members[other]
        news, steps, said = two.news(m), two.steps_for(m), two.said
        self.do(m, lambda it: it.hear(news, self.now, steps, other, said))

    def do(self, m, what):
        machine = self.members[int(m)]
        before, machine.effects = machine.state, ()
        what(machine)
        self.did.setdefault(int(m), []).extend(told(machine.effects, before, machine.state))

    def lines(self, m, machine):
        r = machine.state.record
        says = [r.phase.name, f"view {r.view}", f"iteration {r.iteration}"]
        says += [f"incarnation {r.incarnation}"] if r.incarnation else []
        says += [f"misses {list(r.suspects)}"] if r.suspects else []
        says += [f"reaches {list(r.reaches)}"] if r.reaches else []
        says += [f"promised {tuple(r.promised)}"] if r.promised.round else []
        says += [f"accepted {list(r.accepted.value.members)}"] if r.accepted else []
        if r.proposal:
            what = "?" if r.proposal.value is None else list(r.proposal.value.members)
            says.append(f"proposes {what}")
        yield f"{m}: {', '.join(says)}"
        yield from (f"   {what}" for what in dict.fromkeys(self.did.get(m, ())))


EFFECTS = {
    Effect.TELL: "tells the others",
    Effect.PAUSE: "stops iterating",
}


def told(effects, before, after):
    yield from (EFFECTS[effect] for effect in effects)
    if (view := after.view) != before.view:
        joined = f", of which joined {list(view.joined)}" if view.joined else ""
        yield f"adopts view {view.number}: {list(view.members)} from iteration {view.iteration}{joined}"
    if after.excluded and not before.excluded:
        yield "may ask to be let in"
    if after.hopeless and not before.hopeless:
        yield f"gives up: {after.hopeless}"


def retold(text):
    """Return a transcript with the answers that its commands get."""
    story, lines = Story(), []
    for block in text.split("\n\n"):
        told_lines = block.splitlines()
        for line in told_lines:
            if line.startswith("#"):
                lines.append(line)
            elif line.startswith(">"):
                lines += [line, *story.obey(line.removeprefix(">").strip())]
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


@pytest.mark.parametrize("name", sorted(f.stem for f in FOLDER.glob("*.txt")))
def test_the_story_is_as_it_is_told(name):
    file = FOLDER / f"{name}.txt"
    text = file.read_text(encoding="utf-8")
    now = retold(text)
    if os.environ.get("P2PFT_TRANSCRIPTS") == "write":
        file.write_text(now, encoding="utf-8")
        return
    assert now == text


def test_there_are_stories():
    assert len(list(FOLDER.glob("*.txt"))) >= 6

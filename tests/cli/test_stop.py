"""``p2pft stop`` where what tells a process cannot be written: it is named, and the others are told."""

from __future__ import annotations

from p2pft_flower.cli import app
from tests.commands import CliRunner


class There:
    """A process in which a peer of run 7 trains, and which ends as soon as it is told."""

    def __init__(self, peer, *, full=False):
        self.run, self.peers, self.neighbours = "7", (peer,), (0,)
        self.pid, self.alive, self._full = 4711, True, full

    def stop_run(self):
        if self._full:
            raise OSError(28, "No space left on device", "/home/running/4711-1.stop")
        self.alive = False


def test_a_process_that_cannot_be_told_is_named_with_what_to_do_and_the_others_end(monkeypatch):
    monkeypatch.setattr("p2pft_flower.cli.stop.running", lambda run: [There(1, full=True), There(2)])
    done = CliRunner().invoke(app, ["stop", "7"])
    assert done.exit_code == 1, done.output
    assert "run 7: peer 2 has ended, and told its neighbours to" in done.stdout
    assert "run 7: peer 1 cannot be asked to stop its run" in done.stderr
    assert "No space left on device: '/home/running/4711-1.stop'" in done.stderr
    assert "kill 4711" in done.stderr


def test_it_succeeds_where_all_were_told_and_have_ended(monkeypatch):
    monkeypatch.setattr("p2pft_flower.cli.stop.running", lambda run: [There(1), There(2)])
    done = CliRunner().invoke(app, ["stop"])
    assert (done.exit_code, done.stderr) == (0, ""), done.output


class Named(There):
    """One of run ``run``, whose name another run may have."""

    def __init__(self, run):
        super().__init__(1)
        self.run, self.name = run, "pets"


def test_a_name_of_one_run_stops_it_and_one_of_several_stops_none(monkeypatch):
    there = [Named("7")]
    monkeypatch.setattr("p2pft_flower.cli.stop.running", lambda run: there)
    assert CliRunner().invoke(app, ["stop", "pets"]).exit_code == 0
    there[:] = [Named("7"), Named("8")]
    done = CliRunner().invoke(app, ["stop", "pets"])
    assert done.exit_code == 1
    assert "runs 7, 8 are called pets: give the id of one" in done.stderr
    assert all(one.alive for one in there)

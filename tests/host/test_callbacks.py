"""Callbacks watch a run from a thread of their own: they neither slow nor end it, whatever they do."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

import pytest

from p2pft_flower.errors import ConfigError
from p2pft_flower.host import callbacks
from p2pft_flower.host.host import Host
from p2pft_flower.keeping.lines import Evaluation, Failed, Outcome
from tests.examples import write_example
from tests.journals import made_line

from .hosts import ALONE, FOLDED, Federation, run_together, unix
from .quadratic import GRAPH, Quadratics, plans, with_settings

TOLD = """
import threading

events, threads = [], set()

class Told:
    def __init__(self, run):
        self.run = run

    def add(self, *event):
        events.append((self.run.peers, *event))
        threads.add(threading.current_thread().name)

    def evaluated(self, line):
        self.add("evaluated", line)

    def view_changed(self, line):
        self.add("view", line)

    def ended(self, ends):
        self.add("ended", ends)
"""


@pytest.fixture
def told(tmp_path):
    """The run-config's value for a callback that keeps what it is told; and the module, once it is loaded."""
    file = tmp_path / "told.py"
    file.write_text(TOLD)
    return f"{file}:Told"


def module_of(value):
    return callbacks.load_reference(value, key="callbacks").__init__.__globals__


def train(folder, value, hosts=FOLDED, **settings):
    """Run hosts with a callback; return their outcomes or errors."""
    all_plans = plans(GRAPH, hosts, unix(folder), folder, callbacks=value, **settings)
    return run_together(all_plans, [Quadratics() for _ in hosts])


def test_each_host_tells_its_callback_of_every_evaluation_and_of_the_end_of_its_peers(tmp_path, told):
    results = train(tmp_path, told)
    module = module_of(told)
    for peers, outcomes in zip(((0, 1), (2, 3)), results, strict=True):
        mine = [event[1:] for event in module["events"] if event[0] == peers]
        scored = [(line.peer, line.iteration) for what, line in mine if what == "evaluated"]
        assert scored == [(p, k) for k in (0, 10, 20) for p in peers]
        assert all(isinstance(line, Evaluation) for what, line in mine if what == "evaluated")
        assert [what for what, _ in mine].count("ended") == 1
        assert mine[-1] == ("ended", {outcome.peer: outcome for outcome in outcomes})
    assert module["threads"] == {"p2pft-callbacks"}


def test_a_callback_is_made_from_the_facts_of_the_run(tmp_path):
    file = tmp_path / "facts.py"
    file.write_text("kept = []\n\ndef facts(run):\n    kept.append(run)\n")
    value = f"{file}:facts"
    train(tmp_path, value, name="squares")
    kept = sorted(module_of_function(value)["kept"], key=lambda run: run.peers)
    assert [run.peers for run in kept] == [(0, 1), (2, 3)]
    assert (kept[0].run, kept[0].name, kept[0].folder) == ("test", "squares", tmp_path)
    assert (kept[0].n, kept[0].iterations, kept[0].config["learning-rate"]) == (4, 20, 0.1)


def module_of_function(value):
    return callbacks.load_reference(value, key="callbacks").__globals__


def test_a_change_of_view_is_told_with_who_was_lost(tmp_path, told, monkeypatch):
    here = Federation(tmp_path, unix(tmp_path), monkeypatch, callbacks=told, iterations=60)
    lives = [here.start(0), here.start(1), here.start(2), here.start(3, fail_at={3: 5})]
    outcomes = [life.exception(60) or life.result() for life in lives]
    here.all_there.set()
    assert isinstance(outcomes[3], Exception)
    events = module_of(told)["events"]
    changes = [line for peers, what, line in events if what == "view"]
    assert {tuple(line.lost) for line in changes} == {(3,)}
    assert {line.peer for line in changes} == {0, 1, 2}
    (end,) = [content for peers, what, content in events if what == "ended" and peers == (3,)]
    assert isinstance(end[3], Failed)
    assert "no more images" in end[3].error


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise ValueError('no quota left')", "its evaluated raised ValueError: no quota left"),
        ("raise SystemExit(3)", "its evaluated raised SystemExit: 3"),
        ("line.no_such_field", "its evaluated raised AttributeError"),
    ],
)
def test_an_error_of_a_callback_is_logged_once_with_its_name_and_the_run_goes_on(
    code, says, tmp_path, caplog
):
    file = tmp_path / "faulty.py"
    file.write_text(
        f"class Faulty:\n    def __init__(self, run): ...\n    def evaluated(self, line):\n        {code}\n"
    )
    (outcomes,) = train(tmp_path, f"{file}:Faulty", hosts=[[0, 1, 2, 3]])
    assert all(isinstance(outcome, Outcome) for outcome in outcomes)
    (line,) = [record.getMessage() for record in caplog.records if "callbacks" in record.getMessage()]
    assert line.startswith(f"callbacks = '{file}:Faulty': {says}")
    assert "faulty.py, line 4" in line
    assert "the run goes on" in line


def test_a_callback_that_cannot_be_made_is_logged_and_the_run_goes_on(tmp_path, caplog):
    file = tmp_path / "unmade.py"
    file.write_text("def unmade(run):\n    raise OSError('the server is down')\n")
    (outcomes,) = train(tmp_path, f"{file}:unmade", hosts=[[0, 1, 2, 3]])
    assert all(isinstance(outcome, Outcome) for outcome in outcomes)
    assert "its start raised OSError: the server is down" in caplog.text


def test_a_callback_whose_module_cannot_be_imported_ends_the_run_before_training(tmp_path):
    file = tmp_path / "missing.py"
    file.write_text("import no_such_library\n\ndef notes(run): ...\n")
    (error,) = train(tmp_path, f"{file}:notes", hosts=[[0, 1, 2, 3]])
    assert isinstance(error, ConfigError)
    assert "no_such_library" in str(error)
    assert not (tmp_path / "peers").exists()


STUCK = """
import threading

entered, go_on = threading.Event(), threading.Event()

class Stuck:
    def __init__(self, run): ...

    def evaluated(self, line):
        entered.set()
        go_on.wait(60)
"""


def test_training_does_not_wait_for_a_callback_that_hangs_and_gives_it_up_at_the_end(
    tmp_path, monkeypatch, caplog
):
    """All 20 iterations are done while the callback is in its first event."""
    monkeypatch.setattr(callbacks, "CLOSING", 0.1)
    file = tmp_path / "stuck.py"
    file.write_text(STUCK)
    value = f"{file}:Stuck"
    (outcomes,) = train(tmp_path, value, hosts=[[0, 1, 2, 3]])
    module = module_of(value)
    assert module["entered"].wait(60)
    assert [outcome.iterations for outcome in outcomes] == [20] * 4
    assert f"callbacks = '{value}' has not come to its end within 0.1 s" in caplog.text
    module["go_on"].set()


def test_events_that_a_slow_callback_has_no_room_for_are_left_out_and_told_of_once(monkeypatch):
    monkeypatch.setattr(callbacks, "WAITING", 3)
    entered, go_on, seen, said = threading.Event(), threading.Event(), [], []

    class Slow:
        def evaluated(self, line):
            entered.set()
            assert go_on.wait(60)
            seen.append(line.iteration)

    slow = callbacks._Thread("callbacks", "my:Slow", Slow, said.append)
    slow.start()
    slow.add("evaluated", made_line("evaluation", iteration=0))
    assert entered.wait(60)
    for k in range(1, 10):
        slow.add("evaluated", made_line("evaluation", iteration=k))
    go_on.set()
    slow.close(callbacks.time.monotonic() + 60)
    assert seen == [0, 1, 2, 3]
    assert said == [
        "callbacks = 'my:Slow' is slower than the run: 3 events wait for it, and later ones are left out"
    ]


def test_theta_does_not_depend_on_callbacks(short, told):
    (short / "a").mkdir()
    (short / "b").mkdir()
    watched = train(short / "a", told, hosts=ALONE)
    alone = run_together(plans(GRAPH, ALONE, unix(short / "b"), short / "b"), [Quadratics() for _ in ALONE])
    assert [one[0].sketch for one in watched] == [one[0].sketch for one in alone]


def test_the_docs_example_writes_its_notes(tmp_path):
    file = write_example("my_notes", tmp_path)
    train(tmp_path, f"{file}:Notes")
    lines = (tmp_path / "notes-2.txt").read_text().splitlines()
    assert lines[0].startswith("peer 2, iteration 0: loss ")
    assert lines[-1] == "ended: peers [2, 3]"
    assert len(lines) == 7


def test_what_a_callback_does_wrong_reaches_the_observer(tmp_path, monkeypatch):
    """In a simulation a host's own log shows nowhere."""
    from p2pft_flower.host import recorder

    notes = []

    class Observer:
        def report(self, report):
            notes.append(report.note)

        def close(self, timeout): ...

    monkeypatch.setattr(recorder, "_observer", lambda address, access: Observer())
    monkeypatch.setattr(logging.getLogger("p2pft_flower"), "level", logging.NOTSET)
    file = tmp_path / "unmade.py"
    file.write_text("def unmade(run):\n    raise OSError('the server is down')\n")
    (plan,) = plans(GRAPH, [[0, 1, 2, 3]], {}, tmp_path)
    plan = replace(with_settings(plan, callbacks=f"{file}:unmade"), observer="unix:/o")
    Host(plan, Quadratics()).run()
    assert any("the server is down" in note for note in notes)

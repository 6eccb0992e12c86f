"""Processes that are started are found, with what they start, and none is left behind."""

from __future__ import annotations

import os
import signal
import sys

import psutil
import pytest

from p2pft_flower.lab.supervisor import Functions, Programs, marked, marks
from tests.namespaces.network import PRELOADED

PATIENCE = 60.0

# A program that starts another one in a session of its own, which a signal to its group does not reach.
PARENT = """
import signal, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import signal; {child}print('child', flush=True); signal.pause()"],
                 start_new_session=True)
print("parent", flush=True)
signal.pause()
"""


def start(programs, folder, child=""):
    """Start the parent, and return once both run."""
    process = programs.start("both", [sys.executable, "-c", PARENT.format(child=child)], folder / "log")
    while not {"parent", "child"} <= set(programs.said("both").split()):
        assert process.poll() is None, programs.said("both")
    return process


def test_what_a_program_starts_in_a_session_of_its_own_is_found_and_ended_with_it(tmp_path):
    with Programs(os.environ) as programs:
        process = start(programs, tmp_path)
        found = programs.running()
        assert process.pid in {p.pid for p in found}
        assert len(found) == 2
    assert process.returncode == -signal.SIGTERM
    assert programs.running() == []
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in found)


def test_a_program_that_does_not_end_when_it_is_told_to_is_killed(tmp_path):
    programs = Programs(os.environ)
    start(programs, tmp_path, child="signal.signal(signal.SIGTERM, signal.SIG_IGN); ")
    programs.end(1.0)
    assert programs.running() == []


def test_marks_nest_and_each_is_ended_without_the_one_around_it(tmp_path):
    with Programs(os.environ) as outer:
        around = start(outer, tmp_path)
        with Programs(outer.environment) as inner:
            assert marks(inner.environment)[-2:] == [outer.mark, inner.mark]
            start(inner, tmp_path)
            assert len(outer.running()) == 4
            assert len(marked(inner.mark)) == 2
        assert around.poll() is None
        assert len(outer.running()) == 2


def test_another_process_ends_by_the_mark_what_it_did_not_start(tmp_path):
    programs = Programs(os.environ)
    start(programs, tmp_path)
    Programs({}, programs.mark).end()
    assert programs.running() == []
    programs.end()  # its own are reaped


def echo(pipe, prefix):
    while (word := pipe.recv()) != "end":
        pipe.send(prefix + word)


@pytest.fixture
def functions():
    with Functions(PRELOADED) as started:
        yield started


def test_a_function_is_spoken_to_killed_and_started_again(functions):
    for number in (0, 1):
        functions.start(number, echo, f"{number}: ")
        functions.pipe(number).send("hello")
        assert functions.pipe(number).recv() == f"{number}: hello"
    functions.kill(0)
    assert (functions.exit_code(0), functions.exit_code(1)) == (-signal.SIGKILL, None)
    assert functions.alive == [1]
    functions.start(0, echo, "again: ")
    functions.pipe(0).send("hello")
    assert functions.pipe(0).recv() == "again: hello"
    for number in functions.started:
        functions.pipe(number).send("end")
    functions.join([0, 1], PATIENCE)
    assert [functions.exit_code(number) for number in (0, 1)] == [0, 0]


def test_a_function_that_is_stopped_is_not_left_behind():
    with Functions(PRELOADED) as functions:
        functions.start(0, echo, "")
        functions.signal(0, signal.SIGSTOP)
    assert functions.exit_code(0) == -signal.SIGKILL
    assert functions.alive == []


def test_functions_with_other_modules_are_refused_since_each_would_import_its_own():
    with Functions(PRELOADED), pytest.raises(ValueError, match=r"from a process with the modules \['tests"):
        Functions([])

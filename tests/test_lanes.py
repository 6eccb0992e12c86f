"""Tests that wait and tests that compute are dealt out to workers of their own."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from types import SimpleNamespace

from tests.lanes import ALONE, COLLECTED, COMPUTES, WAITS, Lanes, Turns, waits

ROOT = Path(__file__).resolve().parents[1]

DEPLOYS = re.compile(
    r"\b(Deployment|Network)\(|^from (tests\.faults\.federation|\.real|tests\.cli\.real) import", re.M
)


def test_every_path_of_the_lists_is_there():
    assert [path for path in (*WAITS, *COMPUTES, *ALONE) if not (ROOT / path).exists()] == []


def test_every_file_that_deploys_runs_commands_or_uses_networks_is_among_those_that_wait():
    files = [f for f in sorted((ROOT / "tests").rglob("test_*.py")) if DEPLOYS.search(f.read_text())]
    assert len(files) > 10
    assert [f for f in files if not waits(str(f.relative_to(ROOT)))] == []


class Worker:
    """What the scheduler knows of a worker; runs a test when it knows the next one, or that there is none."""

    def __init__(self, name):
        self.gateway, self.shutting_down, self.todo = SimpleNamespace(id=name), False, []

    def send_runtest_some(self, indices):
        self.todo += indices

    def shutdown(self):
        self.shutting_down = True


WAITING = [f"tests/transport/test_{f}.py::test_{t}" for f in "ab" for t in range(3)]
WAITING += [f"tests/faults/test_links.py::test_{t}" for t in range(3)]
COMPUTING = [f"tests/learning/test_{f}.py::test_{t}" for f in "cdefgh" for t in range(3)]


def run(workers, collection):
    """Let each worker in turn run a test, as long as there are any; return who ran what, in order."""
    nodes = [Worker(f"gw{i}") for i in range(workers)]
    config = SimpleNamespace(
        option=SimpleNamespace(loadscopereorder=False), getvalue=lambda _: ["popen"] * workers, rootpath=ROOT
    )
    lanes = Lanes(config)
    for node in nodes:
        lanes.add_node(node)
    for node in nodes:
        lanes.add_node_collection(node, collection)
    lanes.schedule()
    ran = {node.gateway.id: [] for node in nodes}
    while any(node.todo for node in nodes):
        for node in nodes:
            if len(node.todo) > (not node.shutting_down):
                assert len(node.todo) <= 4, "tests wait for a worker that has others to do"
                index = node.todo.pop(0)
                ran[node.gateway.id].append(collection[index])
                lanes.mark_test_complete(node, index)
    assert lanes.tests_finished
    return ran


def test_every_test_runs_once_files_stay_together_and_each_lane_has_its_workers():
    collection = sorted([*WAITING, *COMPUTING])
    ran = run(3, collection)  # one computes, two wait
    assert sorted(test for tests in ran.values() for test in tests) == collection
    first = {name: tests[:6] for name, tests in ran.items()}
    assert not any(waits(test) for test in first["gw0"])
    assert all(waits(test) for test in [*first["gw1"][:4], *first["gw2"][:4]])
    for file in {test.partition("::")[0] for test in collection} - {"tests/faults/test_links.py"}:
        (mine,) = [tests for tests in ran.values() if any(t.startswith(file) for t in tests)]
        places = [i for i, test in enumerate(mine) if test.startswith(file)]
        assert places == list(range(places[0], places[0] + 3))


def test_tests_that_stand_alone_are_dealt_out_one_by_one_and_the_longest_come_first():
    ran = run(3, sorted([*WAITING, *COMPUTING]))
    faults = [name for name, tests in ran.items() for t in tests if t.startswith("tests/faults")]
    assert len(set(faults)) == 2
    assert ran["gw1"][0].startswith("tests/faults")


def test_workers_whose_lane_is_done_help_the_other():
    ran = run(3, sorted(COMPUTING))
    assert all(ran.values())


def test_two_workers_collect_tests_before_the_others_begin_and_nothing_is_left(monkeypatch):
    def turns(worker):
        if worker is None:
            monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
        else:
            monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        return Turns()

    monkeypatch.setenv(COLLECTED, "")
    (main := turns(None)).pytest_configure()
    workers = [turns(f"gw{i}") for i in range(3)]
    for first in workers[:2]:
        first.pytest_configure()
    third = threading.Thread(target=workers[2].pytest_configure, daemon=True)
    third.start()
    workers[0].pytest_collection_finish()
    third.join(0.3)
    assert third.is_alive()
    workers[1].pytest_collection_finish()
    third.join(60)
    assert not third.is_alive()
    folder = os.environ[COLLECTED]
    main.pytest_unconfigure()
    assert not Path(folder).exists()

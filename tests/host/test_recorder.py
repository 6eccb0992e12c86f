"""What a host tells the observer of how it prepares, whoever else in the process does the same."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

import pytest

from p2pft_flower.host import recorder
from p2pft_flower.host.recorder import Recorder
from p2pft_flower.host.wires import Access

from .hosts import FOLDED, RING
from .quadratic import Quadratics, plans

log = logging.getLogger("p2pft_flower")


class Observer:
    """Keeps the notes that it is told."""

    def __init__(self):
        self.notes = []

    def report(self, report):
        self.notes.append((report.peer, report.note))

    def close(self, timeout):
        pass


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Two hosts of one process, as Flower's workers have it: nobody has set up the log."""
    observer, level = Observer(), log.level
    monkeypatch.setattr(recorder, "_observer", lambda address, access: observer)
    monkeypatch.setattr(logging.getLogger("p2pft_flower"), "level", logging.NOTSET)
    recorders = [
        Recorder(replace(plan, observer="unix:/o"), Quadratics(), Access())
        for plan in plans(RING, FOLDED, {}, tmp_path)
    ]
    yield recorders, observer
    for one in recorders:
        one.close()
    log.setLevel(level)


def test_of_two_hosts_that_prepare_at_once_neither_loses_a_line_nor_tells_the_others(made):
    (first, second), observer = made
    both_in, first_out = threading.Barrier(2), threading.Event()

    def prepare_first():
        with first.telling():
            both_in.wait(60)
            log.info("of the first")
        first_out.set()

    def prepare_second():
        with second.telling():
            both_in.wait(60)
            assert first_out.wait(60)
            log.info("of the second, when the first is done")

    threads = [threading.Thread(target=run) for run in (prepare_first, prepare_second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    log.info("of nobody")
    assert observer.notes == [(0, "of the first"), (2, "of the second, when the first is done")]

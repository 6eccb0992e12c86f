"""What a thread logs is handed on, whoever else in the process does the same."""

from __future__ import annotations

import logging
import threading

import pytest

from p2pft_flower.host.notes import handed_on

log = logging.getLogger("p2pft_flower")


@pytest.fixture
def _quiet():
    """The log as Flower's workers have it: nobody has set it up."""
    before = log.level
    log.setLevel(logging.NOTSET)
    yield
    log.setLevel(before)


@pytest.mark.usefixtures("_quiet")
def test_of_two_hosts_that_begin_and_end_in_turn_neither_loses_a_line_nor_hears_the_other():
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    heard = {"first": [], "second": []}

    def first():
        with handed_on(heard["first"].append):
            first_in.set()
            assert second_in.wait(60)
            log.info("of the first")
        log.info("after it")
        first_out.set()

    def second():
        assert first_in.wait(60)
        with handed_on(heard["second"].append):
            second_in.set()
            assert first_out.wait(60)
            log.info("of the second")

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert heard == {"first": ["of the first"], "second": ["of the second"]}
    assert log.level == logging.NOTSET
    assert not any(type(h).__module__ == "p2pft_flower.host.notes" for h in log.handlers)


@pytest.mark.usefixtures("_quiet")
def test_blocks_within_blocks_each_hear_and_errors_leave_the_log_as_it_was():
    outer, inner = [], []
    with pytest.raises(ValueError, match="x"), handed_on(outer.append):
        with handed_on(inner.append):
            log.info("both")
        log.info("one")
        raise ValueError("x")
    assert (outer, inner) == (["both", "one"], ["both"])
    assert log.level == logging.NOTSET

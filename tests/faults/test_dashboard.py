"""``p2pft dashboard`` in a real browser while real peers train: one is killed and comes back, and all end."""

from __future__ import annotations

import time

from playwright.sync_api import expect

from p2pft_flower.cli.dashboard_watch import Watch
from p2pft_flower.keeping.bulletins import bulletins
from tests.cli.browsing import browser, opened, served
from tests.faults.federation import PATIENCE, Fault, Federation, injects
from tests.faults.peer import Orders

__all__ = ["browser"]

SLOW = Orders(slow_from=0)

ITERATIONS = 240
"""Slow ones take three quarters of a minute, so that the end does not come before all has been done."""


def text(page, where, wanted):
    page.locator(where).filter(has_text=wanted).first.wait_for()


@injects(Fault.KILL_AND_REJOIN)
def test_a_killed_peer_is_shown_lost_and_back_and_the_page_keeps_the_end(browser, tmp_path):
    # All are slow, and none is held: while the browser starts, a held one would be called hanging, and lost.
    orders = dict.fromkeys(range(6), SLOW)
    with Federation(tmp_path, orders=orders, iterations=ITERATIONS, checkpoint_every=10) as peers:
        end = time.monotonic() + PATIENCE
        while len([b for b in bulletins() if b.folder == str(tmp_path)]) < 6:
            assert time.monotonic() < end
            time.sleep(0.1)  # each host writes its own within a second
        with served(Watch(folder=tmp_path.resolve())) as address, opened(browser, address) as page:
            page.locator("#graph .edge.lit").first.wait_for(state="attached")
            edges = expect(page.locator("#graph .edge"))
            edges.to_have_count(6, timeout=1000 * PATIENCE)  # each stands there once it was heard of
            text(page, "#edge-rows", "ms")
            peers.kill(3)
            page.locator('#graph [data-peer="3"][data-state="lost"]').wait_for()
            text(page, "#events", "peer 3 was lost after")
            text(page, "#risk-text", "peer 3 is gone: 5 of 6 peers go on")
            text(page, "#training", "5")
            peers.start_again(3, SLOW)
            text(page, "#events", "peer 3 has come back, ")
            page.locator('#graph [data-peer="3"]:not([data-state="lost"])').wait_for()
            text(page, "#training", "6")
            peers.hurry(*peers.peers)
            peers.check_survivors(peers.peers, peers.ended())
            text(page, "#phase", "completed")
            text(page, "#notice", f"The 6 peers on this machine have come to the end, after {ITERATIONS}")
            text(page, "#iteration", f"{ITERATIONS}")
            page.reload()  # closed and opened again
            text(page, "#events", "peer 3 has come back, ")
            text(page, "#iteration", f"{ITERATIONS}")

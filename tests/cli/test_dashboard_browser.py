"""The page of ``p2pft dashboard`` in a real browser: what an operator sees, hears and can reach by keys."""

from __future__ import annotations

import contextlib
import json
import threading
import time

import msgspec
import pytest
from axe_playwright_python.sync_playwright import Axe

from p2pft_flower.cli.dashboard_watch import Watch
from p2pft_flower.keeping.bulletins import Apart, EdgeNow, Point, bulletin_path, write_bulletin
from p2pft_flower.report.results import SCHEMA
from tests.cli.browsing import browser, opened, served
from tests.report.test_status import bulletin, peer, view

__all__ = ["browser"]

RING = [(0, 1), (1, 2), (2, 3), (3, 0)]


class Host(threading.Thread):
    """Writes the bulletin of peer 0 again and again, as of the moment, as a host does."""

    def __init__(self):
        super().__init__(daemon=True)
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._told, self._writes = None, 0

    def tell(self, *peers, edges=RING, carried=0, n=4, **fields):
        """Change what is written, and write it."""
        now = time.time()
        told = tuple(EdgeNow(j, i, carried, 1000 * carried, 0.012) for j, i in sorted(edges))
        usual = {"edges": told, "history": curves(n), "n": n}
        usual["apart"] = tuple(Apart(k, now, 1.0 / (1 + k * k)) for k in range(0, 401, 40))
        if n > 4:
            usual |= {"names": {}, "live": tuple(range(n))}
            peers = (*(peer(p) for p in range(4, n) if p not in {q.peer for q in peers}), *peers)
        with self._lock:
            self._told = bulletin(*peers, **{**usual, **fields})
            self._write()

    def end(self):
        """Remove the bulletin, as a host that ends."""
        with self._lock:
            self._told = None
            bulletin_path(0).unlink()

    def close(self):
        self._closed.set()
        self.join()

    def run(self):
        while not self._closed.wait(0.5):
            with self._lock:
                self._write()

    def _write(self):
        if self._told is not None:
            self._writes += 1
            told = msgspec.structs.replace(self._told, edges=self._carrying(), written=time.time())
            write_bulletin(bulletin_path(0), told)

    def _carrying(self):
        """Return the edges; what has carried something goes on to: it stays lit until a browser looks."""
        return tuple(
            msgspec.structs.replace(
                e, payloads=e.payloads + self._writes, bytes=e.bytes + 1000 * self._writes
            )
            if e.payloads
            else e
            for e in self._told.edges
        )


@pytest.fixture
def there(tmp_path, monkeypatch):
    """An own P2PFT_HOME."""
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def host(there):
    host = Host()
    host.start()
    yield host
    host.close()


def curves(n, done=400):
    return {
        p: tuple(
            Point(k, time.time(), 2.0 / (1 + k), k / (k + 50) - 0.001 * p, k / (k + 99), 1000 * k)
            for k in range(0, done + 1, 40)
        )
        for p in range(n)
    }


CENTRES = """
[...document.querySelectorAll("#graph .node .shape:first-child")].map((shape) => {
  const box = shape.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2, box.width / 2];
})
"""


def change(**fields):
    """A change of view of this moment."""
    return msgspec.structs.replace(view(**fields), time=time.time())


@contextlib.contextmanager
def shown(browser, **settings):
    with served(Watch()) as address, opened(browser, address, **settings) as page:
        yield page


def state_of(page, number):
    return page.locator(f'#graph [data-peer="{number}"]').get_attribute("data-state")


def row(page, number):
    return page.locator(f'#rows tr[data-key="{number}"]')


def until(page, number, state):
    page.locator(f'#graph [data-peer="{number}"][data-state="{state}"]').wait_for()


def text(page, where, wanted):
    page.locator(where).filter(has_text=wanted).wait_for()


def test_a_run_is_shown_from_before_it_begins_until_it_has_ended_and_after(browser, host, there):
    folder = there / "7"
    with shown(browser) as page:
        text(page, "#notice", "No run trains here yet")
        host.tell(folder=str(folder))
        text(page, "#run", "7")
        text(page, "#iteration", "400")
        text(page, "#left", "40 %; about 5 min left, done at")
        text(page, "#accuracy", "–")  # no peer says so; its curve does
        text(page, "#risk-text", "not at risk")
        assert page.locator("#graph .node").count() == 4
        assert page.locator("#graph .edge").count() == 4
        assert page.locator(".chart").count() == 5
        text(page, "#source", "as known by peer 0 (north) on this machine, from gossip")
        host.tell(folder=str(folder), carried=9)
        page.locator("#graph .edge.lit").first.wait_for(state="attached")
        text(page, "#edge-rows", "12 ms")
        done = [peer(p, iteration=1000, state="finished", heard=0.0) for p in range(4)]
        host.tell(*done, folder=str(folder), carried=9)
        text(page, "#left", "all iterations are done")
        host.end()
        text(page, "#phase", "ending")
        folder.mkdir()
        failed = {"schema": SCHEMA, "status": "failed", "run": "7", "error": "peer 2: no room on the disk"}
        (folder / "results.json").write_text(json.dumps(failed))
        text(page, "#notice", "The run failed: peer 2: no room on the disk")
        text(page, "#iteration", "1000")
        assert page.title().startswith("failed")
        page.reload()
        text(page, "#notice", "The run failed")
        assert page.locator("#graph .node").count() == 4


def test_a_peer_that_is_waited_for_is_pointed_at_by_who_waits(browser, host):
    host.tell(peer(1, state="waiting", awaited=2, busy=12.0))
    with shown(browser) as page:
        until(page, 2, "slow")
        assert page.locator("#graph .waits").count() == 1
        text(page, "#graph .waits-text", "waits 1")
        text(page, "#training", "3")
        text(page, "#counts", "1 slow, 1 waiting, 2 training")
        page.locator('#graph [data-peer="2"]').dispatch_event("pointerdown")
        text(page, "#chosen", "awaited by")
        assert "peer 1 (east) has waited" in row(page, 2).inner_text()
        assert "waits for peer 2 (south)" in row(page, 1).inner_text()
        assert "peer 2 (south) is slow" in page.locator("#graph").get_attribute("aria-label")


def test_a_lost_peer_and_its_return_are_shown_told_and_said_aloud(browser, host):
    lost = change(edges=((0, 1), (1, 2), (2, 0)))
    back = change(number=2, peers=(0, 1, 2, 3), lost=(), joined=(3,), why={}, edges=tuple(RING))
    with shown(browser) as page:
        host.tell()
        until(page, 3, "computing")
        host.tell(live=(0, 1, 2), views=(lost,), edges=[(0, 1), (1, 2), (2, 0)])
        until(page, 3, "lost")
        assert "it crashed" in row(page, 3).inner_text()
        text(page, "#events", "peer 3 (west) was lost after 380 iterations (view 1): it crashed")
        text(page, "#live", "peer 3 (west) was lost")
        text(page, "#view", "view 1")
        assert page.locator('#graph [data-edge="2-0"]').count() == 1
        assert page.locator('#graph [data-edge="3-0"]').count() == 0
        text(page, "#training", "3")
        host.tell(views=(lost, back))
        until(page, 3, "computing")
        text(page, "#live", "peer 3 (west) has come back")
        text(page, "#training", "4")


def test_with_64_peers_no_two_are_drawn_over_each_other_and_curves_are_bands(browser, host):
    n = 64
    edges = [(i, (i + 2**k) % n) for i in range(n) for k in range(6)]
    host.tell(peer(17, spoken=None, heard=200.0), n=n, edges=edges, carried=5)
    with shown(browser) as page:
        until(page, 17, "silent")
        centres = page.evaluate(CENTRES)
        assert len(centres) == n
        for a in range(n):
            for b in range(a):
                (x, y, r), (u, v, s) = centres[a], centres[b]
                assert (x - u) ** 2 + (y - v) ** 2 > (0.8 * (r + s)) ** 2, (a, b)
        assert page.locator(".chart .band").count() == 3
        assert "min " in page.locator(".readout").first.inner_text()
        page.get_by_label("only those that need a look").check()
        assert page.locator("#rows tr").count() == 1
        text(page, "#shown", "1 of 64 shown")
        page.get_by_label("only those that need a look").uncheck()
        page.get_by_label("Filter").fill("peer 6")
        assert page.locator("#rows tr").count() == 5  # 6 and 60 to 63
        width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert width == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("n", [4, 64])
def test_axe_finds_nothing_serious(browser, host, n, scheme):
    lost = change(
        peers=tuple(range(n - 1)),
        lost=(n - 1,),
        why={n - 1: "it crashed"},
        edges=((0, 1), (1, 2), (2, 0)),
    )
    slow = peer(1, state="waiting", awaited=2, busy=12.0)
    host.tell(slow, n=n, live=tuple(range(n - 1)), views=(lost,), carried=5)
    with shown(browser, color_scheme=scheme) as page:
        until(page, 2, "slow")
        page.locator("#rows button").first.click()
        found = Axe().run(page).response["violations"]
        bad = [(v["id"], v["impact"], [n["html"] for n in v["nodes"]][:3]) for v in found]
        assert [b for b in bad if b[1] in ("serious", "critical")] == [], bad


def test_everything_can_be_reached_and_used_by_keys(browser, host):
    host.tell()
    with shown(browser) as page:
        text(page, "#run", "7")
        page.locator(".chart").first.wait_for()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the table of peers"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "filter"
        for _ in range(3):
            page.keyboard.press("Tab")  # the box, the scrolled table, its first button
        assert page.evaluate("document.activeElement.textContent") == "peer 0 (north)"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        text(page, "#chosen", "receives from")
        assert row(page, 0).locator("button").get_attribute("aria-pressed") == "true"
        assert page.locator("#edge-rows tr").count() == 2
        host.tell(carried=9)  # the next look leaves the focus and the choice alone
        page.locator("#graph .edge.lit").first.wait_for(state="attached")
        assert page.evaluate("document.activeElement.textContent") == "peer 0 (north)"
        slider = page.get_by_role("slider").first
        slider.focus()
        page.keyboard.press("Home")
        assert slider.get_attribute("aria-valuetext").startswith("after 0 iterations: peer 0 (north) 0.000")
        page.keyboard.press("ArrowRight")
        assert slider.get_attribute("aria-valuenow") == "40"


def test_names_and_reasons_of_other_sites_are_text_and_nothing_else(browser, host):
    evil = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    lost = change(why={3: f"{evil} why"}, edges=((0, 1), (1, 0)))
    host.tell(names={p: f"{p}{evil}"[:64] for p in range(4)}, live=(0, 1, 2), views=(lost,))
    with shown(browser) as page:
        until(page, 3, "lost")
        page.locator("#rows button").first.click()
        assert "<img src=x" in row(page, 1).inner_text()
        text(page, "#events", "<script>")
        assert page.locator("main img, main script").count() == 0
        assert "owned" not in page.title()


def test_colours_follow_the_system_and_motion_its_setting(browser, host):
    host.tell()
    backs = set()
    with served(Watch()) as address:
        for scheme, motion in (("light", "no-preference"), ("dark", "reduce")):
            with opened(browser, address, color_scheme=scheme, reduced_motion=motion) as page:
                text(page, "#run", "7")
                host.tell(carried=round(time.time()) % 1000)
                page.locator("#graph .edge.lit").first.wait_for(state="attached")
                backs.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
                assert bool(page.locator("#graph .flow").count()) == (motion == "no-preference")
    assert len(backs) == 2


def test_a_dashboard_that_has_ended_is_told_of_and_one_that_is_started_again_is_found(browser, host):
    host.tell()
    with contextlib.ExitStack() as stack:
        serving = stack.enter_context(contextlib.ExitStack())
        address = serving.enter_context(served(Watch()))
        page = stack.enter_context(opened(browser, address))
        text(page, "#run", "7")
        serving.close()
        text(page, "#notice", "No connection to the dashboard since")
        text(page, "#notice", "Shown is the last state")
        text(page, "#iteration", "400")
        stack.enter_context(served(Watch(), int(address.split(":")[2].strip("/"))))
        host.tell(peer(1, iteration=401), *(peer(p, iteration=401, heard=0.0) for p in (0, 2, 3)))
        text(page, "#iteration", "401")
        text(page, "#phase", "training")


def test_of_several_runs_one_is_chosen_in_the_page(browser, host):
    host.tell()
    write_bulletin(bulletin_path(1), bulletin(run="8", own=(1,), written=time.time() - 1))
    with shown(browser) as page:
        text(page, "#run", "7")
        page.get_by_label("Show run").select_option("8")
        text(page, "#run", "8")
        assert page.url.endswith("?run=8")

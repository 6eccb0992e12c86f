"""``p2pft dashboard``: what its server shows whom, late and reopened, until the run has ended and after."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import httpx
import pytest

from p2pft_flower.cli import app, dashboard_server
from p2pft_flower.cli.dashboard_server import FILES, Board, make_app
from p2pft_flower.cli.dashboard_watch import Watch
from p2pft_flower.keeping.bulletins import EdgeNow, bulletin_path, write_bulletin
from p2pft_flower.report.live_page import page_of
from tests.commands import CliRunner
from tests.flower.engine import run_app
from tests.quadratics import QUADRATICS
from tests.report.test_status import NOW, bulletin, peer, view

TOKEN = "a" * 32


@pytest.fixture
def there(tmp_path, monkeypatch):
    """An own P2PFT_HOME."""
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))
    return tmp_path


def board(*bulletins, looks=1):
    """A board that shows one run, whose streams end after so many looks."""
    left = [looks]

    def look(now):
        left[0] -= 1
        return {"7": page_of(bulletins, NOW)} if bulletins else {}

    return Board(look, lambda: left[0] < 0)


class Client:
    """Sends requests to the page's application, each to one made anew; it keeps no cookies.

    Starlette's own TestClient asks for another HTTP library than Flower's.
    """

    def __init__(self, *bulletins, looks=1, token="", base="http://127.0.0.1:8265"):
        self._make = lambda: make_app(board(*bulletins, looks=looks), token, "p2pft-8265")
        self._base = base

    def request(self, method, path, **more):
        return asyncio.run(self._request(method, path, **more))

    def get(self, path, **more):
        return self.request("GET", path, **more)

    async def _request(self, method, path, **more):
        app = self._make()
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url=self._base, timeout=30) as client,
        ):
            return await client.request(method, path, **more)

    def events(self):
        """Return the events of a stream that ends, by name and content."""
        text = self.get("/events").text
        found = [frame.split("\n", 1) for frame in text.strip().split("\n\n") if not frame.startswith(":")]
        return [
            (name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in found
        ]


@pytest.fixture
def client():
    """A client of the page on loopback."""
    return Client(bulletin())


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch):
    monkeypatch.setattr(dashboard_server, "INTERVAL", 0.02)


# The server ---------------------------------------------------------------------------------------------


def test_the_page_is_a_file_a_style_and_a_script_and_asks_for_nothing_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for name, kind in (
        ("page.css", "text/css"),
        ("page.js", "text/javascript"),
        ("icon.svg", "image/svg+xml"),
    ):
        assert client.get(f"/{name}").headers["content-type"].startswith(kind)
        assert name in page.text
    assert sorted(p.name for p in FILES.iterdir()) == ["icon.svg", "index.html", "page.css", "page.js"]
    for file in FILES.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, file


def test_no_script_or_style_stands_in_the_page_and_no_text_becomes_html(client):
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    script = (FILES / "page.js").read_text()
    assert not [
        word
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "document.write")
        if word in script
    ]
    page = (FILES / "index.html").read_text()
    assert "style=" not in page
    assert "onclick" not in page


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_done_but_reading(client, method):
    for path in ("/", "/events", "/page.js"):
        assert client.request(method, path).status_code == 405


@pytest.mark.parametrize("path", ["/index.html", "/../dashboard.py", "/%2e%2e/dashboard.py", "/x"])
def test_no_other_file_can_be_read(client, path):
    assert client.get(path).status_code == 404


def test_a_stream_has_the_state_and_the_curves_and_curves_come_again_only_if_they_change():
    told = Client(bulletin(), looks=3).events()
    names = [name for name, _ in told]
    assert names[:2] == ["state", "charts"]
    assert names.count("charts") == 1
    state = told[0][1]
    assert (state["run"], state["iteration"], len(state["peers"])) == ("7", 400, 4)
    assert state["runs"] == [{"run": "7", "phase": "training"}]
    assert "charts" not in state


def test_who_comes_late_is_told_all_at_once_and_a_stream_without_a_run_says_so():
    async def first(of, run=None):
        stream = of.stream(run)
        await of.renew()
        try:
            return await anext(stream)
        finally:
            await stream.aclose()

    shown = Board(lambda now: {"7": page_of([bulletin()], NOW)})
    for _ in range(2):  # closed and opened again
        assert asyncio.run(first(shown)).startswith("event: state\ndata: {")
    assert asyncio.run(first(shown, "8")).startswith("event: nothing")
    assert asyncio.run(first(Board(lambda now: {}))).startswith("event: nothing")


def test_a_name_cannot_leave_its_event():
    odd = bulletin(names={0: "a\n\nevent: state\ndata: {}\n\n</script>"})
    told = Client(odd).events()
    assert [name for name, _ in told].count("state") == 1
    assert told[0][1]["peers"][0]["name"].endswith("</script>")


def test_a_text_with_odd_bytes_does_not_stop_the_page_of_all_runs():
    page = page_of([bulletin(names={0: "north\udcff"})], NOW)
    state, _ = dashboard_server.frames(page, {"7": page})
    assert json.loads(state)["peers"][0]["name"] == "north\\udcff"


def test_files_that_cannot_be_read_at_one_look_do_not_end_the_page(caplog):
    looks = iter([OSError("no descriptors are left"), {"7": page_of([bulletin()], NOW)}])

    def look(now):
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    async def twice():
        shown = Board(look)
        await shown.renew()
        await shown.renew()
        return await anext(shown.stream(None))

    assert "event: state" in asyncio.run(twice())
    assert "no descriptors are left" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1:8265", "localhost", "localhost:9000", "[::1]:8265", "127.0.0.2"])
def test_loopback_is_let_in_by_any_of_its_names_also_through_a_tunnel(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8265", "", "localhost.evil", "[::1", "10.0.0.1"]
)
def test_a_name_that_somebody_made_point_to_loopback_is_refused(client, host):
    for path in ("/", "/events"):
        assert client.get(path, headers={"host": host}).status_code == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:9999", "null", "http://["])
def test_another_page_may_not_read_this_one(client, origin):
    answer = client.get("/events", headers={"origin": origin})
    assert answer.status_code == 403
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert client.get("/", headers={"origin": "http://127.0.0.1:8265"}).status_code == 200


def test_beyond_loopback_nothing_is_shown_without_the_token_and_a_cookie_takes_its_place():
    client = Client(bulletin(), token=TOKEN, base="http://gpu3:8265")
    for path in ("/", "/events", "/page.js", "/?token=", "/?token=wrong"):
        assert client.get(path).status_code == 401
    assert client.get("/", headers={"cookie": "p2pft-8265=wrong"}).status_code == 401
    let_in = client.get(f"/?token={TOKEN}")
    assert let_in.status_code == 200
    cookie, _, more = let_in.headers["set-cookie"].partition("; ")
    assert more == "Path=/; HttpOnly; SameSite=Strict"
    assert client.get("/events", headers={"cookie": cookie}).status_code == 200


# The watch ----------------------------------------------------------------------------------------------


def test_the_traffic_of_late_is_what_an_edge_has_carried_since_some_looks_ago(there):
    watch = Watch()
    for second, carried in enumerate((0, 100, 200, 200, 200, 200, 200, 200, 200)):
        edges = (EdgeNow(0, 1, 1 + carried, carried, 0.1),)
        write_bulletin(bulletin_path(0), bulletin(edges=edges, written=NOW + second))
        page = watch.look(NOW + second)["7"]
        if second == 0:
            assert page.edges[0].rate is None
        if second == 2:
            assert page.edges[0].rate == 100.0
    assert page.edges[0].rate == 0.0


def test_a_peer_that_is_silent_for_a_while_stays_in_the_list_of_events(there):
    watch = Watch()
    for second, spoken in enumerate((0.5, 12.0, 0.5)):
        write_bulletin(bulletin_path(0), bulletin(peer(1, spoken=spoken, heard=spoken), written=NOW + second))
        page = watch.look(NOW + second)["7"]
    assert [e.kind for e in page.events] == ["good", "bad"]


def test_several_runs_are_told_apart_and_the_one_that_trains_comes_first(there):
    write_bulletin(bulletin_path(0), bulletin())
    write_bulletin(bulletin_path(1), bulletin(run="8", own=(1,), folder="/runs/8"))
    watch = Watch()
    assert watch.look(NOW).keys() == {"7", "8"}
    bulletin_path(1).unlink()
    pages = watch.look(NOW + 1)
    assert list(pages) == ["7", "8"]
    assert pages["8"].phase == "ending"
    assert Watch("7").look(NOW).keys() == {"7"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, as a simulation leaves it."""
    folder = tmp_path_factory.mktemp("run") / "1"
    run_app(folder, problem=QUADRATICS, topology="directed-ring:4", iterations=4)
    return folder


def test_at_its_end_a_run_keeps_its_last_state_until_its_results_are_there(run, there):
    here = there / "7"
    change = view()
    write_bulletin(bulletin_path(0), bulletin(folder=str(here), live=(0, 1, 2), views=(change,)))
    watch = Watch()
    before = watch.look(NOW)["7"]
    bulletin_path(0).unlink()
    ending = watch.look(NOW + 1)["7"]
    assert (ending.phase, ending.iteration, ending.peers) == ("ending", 400, before.peers)
    here.mkdir()
    shutil.copy(run / "results.json", here)
    ended = watch.look(NOW + 2)["7"]
    assert (ended.phase, ended.outcome, ended.iteration) == ("ended", "completed", 4)
    assert ended.charts["loss"].iterations[-1] == 4
    assert ended.events == before.events
    assert watch.look(NOW + 3)["7"] == ended


def test_the_files_tell_what_happened_if_the_last_process_here_has_not_seen_it(run, there):
    here = there / "7"
    content = json.loads((run / "results.json").read_text())
    change = {"number": 1, "iteration": 2, "peers": [0, 1, 2], "edges": [], "lost": [3], "joined": []}
    content["views"] = [{**change, "why": {"3": "it crashed"}, "seconds": 1.0, "time": NOW - 60}]
    here.mkdir()
    (here / "results.json").write_text(json.dumps(content))
    watch = Watch()
    for state in ("silent", "computing"):
        now = peer(1, heard=9.0, spoken=9.0) if state == "silent" else peer(1)
        write_bulletin(bulletin_path(0), bulletin(now, folder=str(here)))
        watch.look(NOW)
    bulletin_path(0).unlink()
    texts = [event.text for event in watch.look(NOW + 1)["7"].events]
    assert texts[-1] == "peer 3 was lost after 2 iterations (view 1): it crashed"
    assert "peer 1 (east) is silent no more: it is computing" in texts


def test_the_bulletin_of_a_killed_process_does_not_hide_that_the_run_has_ended_since(run, there):
    here = there / "7"
    dead = bulletin(folder=str(here), alive=False)
    write_bulletin(bulletin_path(0), dead)
    watch = Watch()
    assert watch.look(NOW)["7"].phase == "quiet"
    here.mkdir()
    shutil.copy(run / "results.json", here)
    for late in (watch, Watch()):
        page = late.look(NOW + 1)["7"]
        assert (page.phase, page.outcome, page.iteration) == ("ended", "completed", 4)


def test_a_run_that_leaves_nothing_in_its_folder_ends_with_its_last_state(there):
    write_bulletin(bulletin_path(0), bulletin(folder=str(there / "gone")))
    watch = Watch()
    watch.look(NOW)
    bulletin_path(0).unlink()
    page = watch.look(NOW + 100)["7"]
    assert (page.phase, page.outcome, page.iteration) == ("ended", "", 400)
    assert "this is its last state" in page.told.lower()


def test_a_site_shows_all_that_it_had_heard_of_though_its_own_journal_is_of_one_peer(run, there):
    here = there / "7"
    (here / "peers").mkdir(parents=True)
    shutil.copy(run / "peers" / "peer-0.jsonl", here / "peers")
    write_bulletin(bulletin_path(0), bulletin(folder=str(here)))
    watch = Watch()
    before = watch.look(NOW)["7"]
    bulletin_path(0).unlink()
    page = watch.look(NOW + 1)["7"]
    assert (page.phase, page.outcome) == ("ended", "completed")
    assert page.told == "Peer 0 has come to the end, after 4 iterations."
    assert [p.accuracy for p in page.peers] == [p.accuracy for p in before.peers]
    assert [p.state for p in page.peers] == ["finished", "computing", "computing", "computing"]
    assert page.iteration == page.iterations


# The command --------------------------------------------------------------------------------------------


def started(folder, *words):
    """Start ``p2pft dashboard``; return the process and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from p2pft_flower.cli import main; main()", "dashboard", *words],
        env={**os.environ, "P2PFT_HOME": str(folder), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    assert line.startswith("open http://"), line + process.stderr.read()
    return process, line.split()[1]


def ended(process, number=signal.SIGINT):
    process.send_signal(number)
    said = process.communicate(timeout=60)
    return process.returncode, *said


def fetched(address):
    """Return the answer's text, or the number of its error, once the server answers."""
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError):
                return error.code
            if time.monotonic() > end:
                raise
            time.sleep(0.1)  # it has bound the port, and listens soon


def test_the_command_serves_the_page_until_ctrl_c_with_an_open_stream(there):
    write_bulletin(bulletin_path(0), bulletin())
    process, address = started(there / "home", "--listen", "127.0.0.1:0", "7")
    try:
        assert "<title>p2pft dashboard</title>" in fetched(address)
        with urllib.request.urlopen(f"{address}events", timeout=30) as stream:
            assert stream.readline() == b"event: state\n"
            code, said, _ = ended(process)
        assert code == 0
        assert "the run goes on" in said
    finally:
        process.kill()
        process.wait()


def test_beyond_loopback_the_command_prints_an_address_with_a_token(there):
    process, address = started(there / "home", "--listen", "0.0.0.0:0")
    try:
        port = address.split(":")[2].partition("/")[0]
        token = address.partition("?token=")[2]
        assert len(token) >= 32
        assert fetched(f"http://127.0.0.1:{port}/") == 401
        assert "<title>" in fetched(f"http://127.0.0.1:{port}/?token={token}")
        code, _, warned = ended(process, signal.SIGTERM)
        assert code == 128 + signal.SIGTERM
        assert "plain HTTP" in warned
        assert token not in warned
    finally:
        process.kill()
        process.wait()


def test_the_server_needs_none_of_the_libraries_that_train():
    heavy = "{'torch', 'timm', 'matplotlib'}"
    code = f"import sys, p2pft_flower.cli.dashboard_server; print({heavy} & {{*sys.modules}})"
    said = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["9"], 1, "run 9 does not train here"),
        (["."], 1, "results.json"),
        (["--listen", "nowhere"], 2, "neither 'unix:/path' nor 'host:port'"),
        (["--listen", "unix:/x"], 2, "a browser needs host:port"),
        (["--listen", "192.0.2.1:80"], 2, "cannot listen there"),
    ],
)
def test_a_run_that_is_not_here_and_an_address_that_is_not_ours_are_refused(
    words, code, said, there, monkeypatch
):
    monkeypatch.chdir(there)
    done = CliRunner().invoke(app, ["dashboard", *words])
    assert (done.exit_code, said in done.stderr) == (code, True), done.stderr


def test_a_reader_that_stops_reading_holds_up_no_other_one(monkeypatch):
    monkeypatch.setattr(dashboard_server, "_ALIVE", 0.01)

    async def read_and_stop():
        board = Board(lambda now: {})
        await board.renew()
        stops, reads = board.stream(None), board.stream(None)
        for stream in (stops, reads):
            assert (await anext(stream)).startswith("event: nothing")
            assert await anext(stream) == ": alive\n\n"
        await board.renew()  # while one of them is not read any more
        assert (await anext(reads)).startswith("event: nothing")

    async def in_time():
        await asyncio.wait_for(read_and_stop(), 30)

    asyncio.run(in_time())

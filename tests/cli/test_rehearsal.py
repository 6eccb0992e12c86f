"""What `p2pft up` and `down` start, write and end, with small programs in the place of Flower's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import psutil
import pytest
import yaml

from p2pft_flower.cli import app, connections, rehearsal
from p2pft_flower.lab.supervisor import Programs, marked
from tests.commands import CliRunner

MINE = """\
# what I keep here
[superlink]
default = "lab"  # not to be touched

[superlink.lab]
address = "lab.example.org:9093"
root-certificates = "/etc/lab/ca.pem"
"""

SUPERLINK = """
import http.server, sys
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        pass
print("the SuperLink speaks", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""

# With a process of its own, in a session of its own, that a signal to the SuperNode would not reach.
SUPERNODE = """
import signal, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
print("the SuperNode speaks", flush=True)
signal.pause()
"""

FLWR = """
import json, sys
assert sys.argv[1:3] == ["supernode", "list"]
print(json.dumps({"success": True, "nodes": [{"status": "online"}] * %d}))
"""

runner = CliRunner()

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def flower(monkeypatch, tmp_path):
    """Put scripts in the place of Flower's programs; end whatever they left."""
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "p2pft"))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "config.toml").write_text(MINE)
    (tmp_path / "programs").mkdir()

    def put(name, source):
        file = tmp_path / "programs" / name
        file.write_text(f"#!{sys.executable}\n{textwrap.dedent(source)}")
        file.chmod(0o700)

    put("flower-superlink", SUPERLINK)
    put("flower-supernode", SUPERNODE)
    put("flwr", FLWR % 3)
    monkeypatch.setattr(rehearsal, "program", lambda name: str(tmp_path / "programs" / name))
    started = []

    class Kept(subprocess.Popen):  # the command ends before what it started does; this process does not
        def __init__(self, *words, **options):
            super().__init__(*words, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Kept)
    yield put
    state = rehearsal.current()
    for process in [] if state is None else marked(state.mark):
        process.kill()
    for process in started:
        process.wait(60)


def config():
    return connections.config_file().read_text()


def up(*words):
    return runner.invoke(app, ["up", *words])


def test_up_starts_a_superlink_and_a_supernode_for_each_peer_and_down_ends_them_all(flower):
    done = up("--topology", "directed-ring:3", "--federation", "north", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    state = rehearsal.current()
    assert told == json.loads(json.dumps(state.to_dict()))
    assert [p["peer"] for p in told["peers"]] == [0, 1, 2]
    assert len(told["processes"]) == 4
    end = time.monotonic() + 60
    while len(there := marked(state.mark)) < 1 + 3 * 2 and time.monotonic() < end:
        pass
    assert len(there) == 1 + 3 * 2  # each SuperNode has started another
    assert f'address = "{told["superlink"]}"' in config()
    for peer in told["peers"]:
        asked = runner.invoke(app, ["certs", "show", peer["certificates"], "--json"])
        assert "'north'" in asked.stdout or '"north"' in asked.stdout
    done = runner.invoke(app, ["down"])
    assert (done.exit_code, done.stdout) == (0, "ended the rehearsal of 3 peers\n")
    assert marked(state.mark) == []
    assert config() == MINE
    done = runner.invoke(app, ["down"])
    assert (done.exit_code, done.stdout) == (0, "nothing is up\n")


def test_up_while_one_is_up_says_so_and_changes_nothing(flower):
    assert up("--peers", "3").exit_code == 0
    before = rehearsal.current()
    done = up("--peers", "2")
    assert done.exit_code == 3
    assert "a rehearsal with 3 peers is up already" in done.stderr
    assert rehearsal.current() == before
    psutil.Process(before.processes[2].pid).kill()
    psutil.wait_procs([psutil.Process(before.processes[2].pid)], timeout=60)
    done = up("--peers", "3")
    assert done.exit_code == 3
    assert "the SuperNode of peer 1 has ended" in done.stderr
    assert runner.invoke(app, ["down"]).exit_code == 0
    assert marked(before.mark) == []


def test_a_process_that_ends_is_named_with_its_last_words_and_nothing_is_left(flower, monkeypatch):
    marks = []

    class Noted(Programs):
        def end(self, *patience):
            marks.append(self.mark)
            super().end(*patience)

    monkeypatch.setattr(rehearsal, "Programs", Noted)
    flower("flower-supernode", "raise SystemExit('the port of this site is taken')")
    flower("flwr", FLWR % 0)  # none has registered, however late they end
    done = up("--peers", "3")
    assert done.exit_code == 1
    # All three end; which one is seen first is chance.
    assert re.search(r"the SuperNode of peer \d ended with code 1 before all had registered", done.stderr)
    assert "the port of this site is taken" in done.stderr
    assert marked(marks[0]) == []
    assert rehearsal.current() is None
    assert config() == MINE


def test_supernodes_that_do_not_register_in_time_are_counted(flower, monkeypatch):
    registered, now = rehearsal._registered, [0.0]

    def count(environment):
        found = registered(environment)
        if all("speaks" in log.read_text() for log in (rehearsal.folder() / "logs").iterdir()):
            now[0] = 1000.0  # the time is over as soon as there is nothing more to come
        return found

    monkeypatch.setattr(rehearsal, "_registered", count)
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep)
    monkeypatch.setattr(rehearsal, "time", clock)
    flower("flwr", FLWR % 1)
    done = up("--peers", "3")
    assert done.exit_code == 1
    assert "after 105 s 1 of 3 SuperNodes have registered" in done.stderr
    assert "the SuperNode speaks" in done.stderr
    assert rehearsal.current() is None


def test_what_a_restart_of_the_machine_left_of_a_rehearsal_does_not_stand_in_the_way(flower):
    assert up("--peers", "3").exit_code == 0
    before = rehearsal.current()
    while left := marked(before.mark):  # one may have started another meanwhile
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=60)
    assert up("--peers", "3").exit_code == 0
    assert rehearsal.current().mark != before.mark
    assert runner.invoke(app, ["down"]).exit_code == 0


def test_a_process_that_got_the_number_of_one_that_ended_is_left_alone(flower):
    stranger = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        assert up("--peers", "3").exit_code == 0
        file = rehearsal.folder() / "state.json"
        state = json.loads(file.read_text())
        state["processes"][1]["pid"] = stranger.pid
        state["processes"][1]["started"] += "0"
        file.write_text(json.dumps(state))
        assert not rehearsal.current().processes[1].alive
        assert runner.invoke(app, ["down"]).exit_code == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()


def test_a_connection_of_that_name_that_is_not_ours_is_left_alone(flower):
    theirs = MINE + '\n[superlink.rehearsal]\naddress = "elsewhere.example.org:9093"\n'
    connections.config_file().write_text(theirs)
    done = up("--peers", "3")
    assert done.exit_code == 2
    assert "'rehearsal', to elsewhere.example.org:9093, that p2pft up has not written" in done.stderr
    assert runner.invoke(app, ["down"]).exit_code == 0
    assert config() == theirs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--peers", "3", "--topology", "ring-4"], "--peers 3 and --topology ring-4, which has 4 peers"),
        (["--topology", "ring-five"], "there is no graph 'ring-five'"),
        (["--peers", "3", "--federation", "Not A Name"], "Not A Name"),
    ],
    ids=str,
)
def test_wrong_options_start_nothing(words, message, flower):
    done = up(*words)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert rehearsal.current() is None
    assert config() == MINE


def test_a_topology_with_addresses_of_other_machines_cannot_be_rehearsed(flower, tmp_path):
    file = tmp_path / "sites.yaml"
    peers = [{"name": "north", "address": "10.0.0.1:9000"}, {"name": "south"}]
    file.write_text(yaml.safe_dump({"peers": peers, "edges": [[0, 1], [1, 0]]}))
    done = up("--topology", str(file))
    assert done.exit_code == 2
    assert (
        "gives peer north the address 10.0.0.1:9000, which is not on this machine's loopback" in done.stderr
    )


def test_two_ups_at_once_do_not_meet(flower):
    with rehearsal._alone():
        done = up("--peers", "3")
    assert done.exit_code == 3
    assert "another p2pft up or p2pft down is at work" in done.stderr


def test_files_of_a_rehearsal_are_for_its_user_only(flower):
    assert up("--peers", "3").exit_code == 0
    assert rehearsal.folder().stat().st_mode & 0o077 == 0
    assert (rehearsal.folder() / "authority" / "ca.key").stat().st_mode & 0o077 == 0
    assert runner.invoke(app, ["down"]).exit_code == 0


def test_a_file_that_is_no_toml_is_told_and_kept(flower):
    connections.config_file().write_text("[superlink\n")
    done = up("--peers", "3")
    assert done.exit_code == 2
    assert "is not TOML that can be read" in done.stderr
    assert config() == "[superlink\n"

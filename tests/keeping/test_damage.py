"""Damaged, foreign or edited files end in one error that names the file, or in what they said before."""

from __future__ import annotations

import json
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from p2pft_flower.cli import rehearsal
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.facts import GraphName, KnownImages, PeerFacts, RunFacts
from p2pft_flower.keeping.checkpoints import (
    SERVER,
    Checkpoint,
    _digest,
    checkpoint_folder,
    read_checkpoint,
    write_checkpoint,
)
from p2pft_flower.keeping.journal import Journal, read_journal, read_whole_lines
from p2pft_flower.keeping.lives import next_incarnation
from p2pft_flower.keeping.past import read_past
from p2pft_flower.keeping.progress import told_evaluations
from p2pft_flower.keeping.rejoining import kept_plan, plan_file, save_plan
from p2pft_flower.keeping.resuming import given_up, look_through, newest_common
from p2pft_flower.keeping.running import registered, running
from p2pft_flower.lab.watch import Watch
from p2pft_flower.plan import Plan
from p2pft_flower.report.collected import collect_results, find_peers, rows_of
from p2pft_flower.topology import Graph
from tests.host.quadratic import plans
from tests.journals import made_line

from .test_checkpoints import ABOUT, checkpoint

RING = Graph.load("directed-ring:3")
FACTS = RunFacts(GraphName(RING.name, RING.digest), (0, 1, 2), "iid", {"python": "3"}, pooled=False)
EXAMPLES = settings(max_examples=60, deadline=None)


# --- what is damaged ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run's folder with the files of three peers, whole; and their bytes."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("damaged")
        patch.setenv("P2PFT_HOME", str(folder / "home"))
        addresses = {p: f"127.0.0.1:{9000 + p}" for p in range(3)}
        for plan in plans(RING, [[0], [1], [2]], addresses, folder / "run", survive=True):
            save_plan(plan)
        for peer in range(3):
            leave_log(folder / "run", peer)
        write_checkpoint(checkpoint(live=(0, 1, 3)), checkpoint_folder(folder / "run", 3))
        (folder / "home" / "rehearsal").mkdir(parents=True)
        rehearsal._save(
            rehearsal.Rehearsal(
                "m",
                "f",
                "127.0.0.1:9",
                (rehearsal.Peer(0, "127.0.0.1:8", "c", "n"),),
                (rehearsal.Process("the SuperLink", 1, "time:0", "log"),),
            )
        )
        yield folder


def leave_log(folder, peer):
    journal = Journal(folder, peer)
    about = PeerFacts(str(peer), ("a", "b"), KnownImages(7, "x", "y", "auto"), rows_of(RING, [peer]))
    first = {"run": "test", "n": 3, "iterations": 20, "host": (peer,), "facts": FACTS, "about": about}
    view = {"iteration": 5, "peers": (0, 1, 2), "edges": RING.edges, "joined": (1,)}
    journal.write(made_line("run", peer, **first))
    journal.write(made_line("start", peer))
    journal.write(made_line("evaluation", peer, iteration=0))
    journal.write(made_line("trace", peer, iteration=1))
    journal.write(made_line("view", peer, **view, why={1: "crashed"}))
    journal.write(made_line("evaluation", peer, iteration=20, epsilon=1.5))
    journal.write(made_line("end", peer, iterations=20, preprocessing={"mean": [0.5]}))
    journal.close()
    (folder / "peers" / f"peer-{peer}.safetensors").write_bytes(b"tail")


class Damaged:
    """A file that has other content during a ``with`` block."""

    def __init__(self, path, data):
        self.path, self.data, self.whole = path, data, path.read_bytes()

    def __enter__(self):
        self.path.write_bytes(self.data)

    def __exit__(self, *_):
        self.path.write_bytes(self.whole)


def attempt(read):
    """Return what ``read`` returns, and None; or None, and the one error that it may raise."""
    try:
        return read(), None
    except DataError as error:
        return None, str(error)


@st.composite
def damaged(draw, whole):
    """``whole`` with bytes flipped, cut, added, in another encoding, or none of it left."""
    kind = draw(st.sampled_from(["flip", "cut", "drop", "add", "encode", "other"]))
    data = bytearray(whole)
    at = draw(st.integers(0, len(whole) - 1))
    if kind == "flip":
        for _ in range(draw(st.integers(1, 3))):
            data[draw(st.integers(0, len(whole) - 1))] ^= draw(st.integers(1, 255))
    elif kind == "cut":
        del data[at:]
    elif kind == "drop":
        del data[at : at + draw(st.integers(1, 40))]
    elif kind == "add":
        data[at:at] = draw(st.binary(min_size=1, max_size=40) | st.just(b"[" * 100_000))
    elif kind == "encode":
        data = whole.decode("latin-1").encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig"])))
    else:
        data = draw(st.sampled_from([b"", b"\0", b"{}", b"[]\n", b"null\n", b"[" * 100_000, b"\xff\xfe\n"]))
    return bytes(data)


DEEP = "a place for what is deep"
VALUES = [
    None,
    True,
    0,
    -1,
    4096,
    2**53,
    2**70,
    10**400,
    0.5,
    1e308,
    "",
    "x",
    "7",
    [],
    [[]],
    {},
    {"0": 0},
    DEEP,
]


@st.composite
def edited(draw, tree):
    """JSON of ``tree`` in which one value, however deep, is gone, another one, or of another name."""
    tree = json.loads(json.dumps(tree))
    here = tree
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        key = draw(st.sampled_from(keys))
        if isinstance(here[key], dict | list) and here[key] and draw(st.integers(0, 4)):
            here = here[key]
            continue
        what = draw(st.sampled_from(["gone", "other", "other", "other", "renamed"]))
        if what == "other":
            here[key] = draw(st.sampled_from(VALUES))
        else:
            old = here.pop(key)
            if what == "renamed" and isinstance(here, dict):
                here[draw(st.sampled_from(["-1", "x", "99999999", ""]))] = old
        break
    return json.dumps(tree).replace(json.dumps(DEEP), "[" * 3000 + "]" * 3000)


def sealed_plan(body):
    digest = sha256(body.encode()).hexdigest()
    return f'{{"schema":"p2pft.plan/1","digest":"{digest}","plan":{body}}}'.encode()


def sealed_line(body):
    told = body.encode()[:-1]
    return told + b',"check":"%08x"}\n' % zlib.crc32(told)


# --- plans --------------------------------------------------------------------------------------------------


def plan_of(place):
    return kept_plan(place / "run", "test", 1)


@EXAMPLES
@given(data=st.data())
def test_a_damaged_plan_is_named_or_is_what_it_was(data, place):
    path = plan_file(place / "run", 1)
    log = place / "run" / "peers" / "peer-1.jsonl"
    with Damaged(log, b""):
        whole = plan_of(place)
        with Damaged(path, data.draw(damaged(path.read_bytes()))):
            plan, error = attempt(lambda: plan_of(place))
            assert plan == whole if error is None else str(path) in error


@EXAMPLES
@given(data=st.data())
def test_an_edited_plan_is_a_plan_or_names_its_field(data, place):
    whole = json.loads(plan_file(place / "run", 1).read_bytes())["plan"]
    text = sealed_plan(data.draw(edited(whole)))
    plan, error = attempt(lambda: Plan.from_json(text))
    if error is None:
        assert Plan.from_json(plan.to_json()) == plan
        assert plan.begins.keys() == {p.peer for p in plan.peers}
        plan.weights_among([p.peer for p in plan.peers])
    else:
        assert error.startswith("not a plan of this version: ")


# --- logs ---------------------------------------------------------------------------------------------------


def readings(place):
    """Everything that is made of the peers' logs."""
    run = place / "run"
    peers = run / "peers"
    return {
        "lines": lambda: list(read_journal(peers / "peer-1.jsonl")),
        "collected": lambda: collect_results(find_peers([run]), partial=True),
        "told": lambda: told_evaluations(peers, 1, 3),
        "past": lambda: read_past(peers / "peer-1.jsonl", "test").before(20),
        "watched": lambda: Watch(RING, run).poll(),
    }


LENIENT = {"told", "past"}
"""What a run that goes on is told of the past: without the lines that cannot be read."""


@EXAMPLES
@given(data=st.data())
def test_a_damaged_log_is_named_or_says_what_it_said(data, place):
    path = place / "run" / "peers" / "peer-1.jsonl"
    whole, reads = path.read_bytes(), readings(place)
    said, told, past = list(read_journal(path)), reads["told"](), reads["past"]()
    with Damaged(path, data.draw(damaged(whole))):
        lines, odd = read_whole_lines(path)
        assert all(line in said for line in lines)
        assert [line for line in told if line in reads["told"]()] == reads["told"]()
        assert [line for line in past if line in reads["past"]()] == reads["past"]()
        for name in reads.keys() - LENIENT:
            _, error = attempt(reads[name])
            assert error is not None or not odd or name == "watched"  # a torn end may still be on its way
            assert error is None or str(path) in error or "no results of" in error or "peer 1" in error


@EXAMPLES
@given(data=st.data())
def test_an_edited_log_makes_results_or_names_what_is_wrong(data, place):
    path = place / "run" / "peers" / "peer-1.jsonl"
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    number = data.draw(st.integers(0, len(lines) - 1))
    for line in lines:
        del line["check"]
    bodies = [json.dumps(line) for line in lines]
    bodies[number] = data.draw(edited(lines[number]))
    with Damaged(path, b"".join(map(sealed_line, bodies))), np.errstate(all="ignore"):
        for name, read in readings(place).items():
            _, error = attempt(read)
            assert error is None or name not in LENIENT


def test_one_odd_line_is_counted_named_and_left_out(place, caplog):
    path = place / "run" / "peers" / "peer-1.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b"crashed", b"crushed")
    with Damaged(path, b"".join(lines)):
        past = read_past(path, "test")
        assert [e.iteration for e in past.before(30)] == [0, 20]
        assert f"{path}, line 5: damaged, edited or of another version" in caplog.text
        assert past.view == 1  # what cannot be read may have told of one
        with pytest.raises(DataError, match=r"peer-1\.jsonl, line 5: damaged"):
            list(read_journal(path))


def test_a_line_of_an_earlier_version_is_told_to_be_one(place):
    path = place / "run" / "peers" / "peer-1.jsonl"
    with (
        Damaged(path, b'{"time": 1.0, "event": "run", "peer": 1, "run": "test"}\n'),
        pytest.raises(DataError, match=r"peer-1\.jsonl, line 1: .* of another version"),
    ):
        list(read_journal(path))


# --- checkpoints --------------------------------------------------------------------------------------------


def reseal(document, tensors, folder):
    """Write a checkpoint with any document, whose digest fits."""
    path = checkpoint_folder(folder, 3) / "iteration-24.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save(tensors, {"p2pft": document, "digest": _digest(document, tensors)}))
    return path


@EXAMPLES
@given(data=st.data())
def test_an_edited_checkpoint_is_a_checkpoint_or_is_named(data, place, tmp_path_factory):
    path = checkpoint_folder(place / "run", 3) / "iteration-24.safetensors"
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    tensors = {k: np.asarray(v) for k, v in read_checkpoint(path)[0].state.items() if v is not None}
    document = data.draw(edited(json.loads(header["__metadata__"]["p2pft"])))
    folder = place / "edited"
    path = reseal(document, tensors, folder)
    read, error = attempt(lambda: read_checkpoint(path, q=40)[0])
    if error is not None:
        assert str(path) in error
        assert look_through(folder, 3).views == {}
        return
    assert isinstance(read, Checkpoint)
    kept = look_through(folder, 3)
    assert kept.digests.keys() == {24}
    given_up([kept], 0)
    newest_common([kept], exchanges=False)


@EXAMPLES
@given(data=st.data())
def test_an_edited_header_claims_no_memory_that_the_file_has_not(data, place):
    """Shapes and places of tensors: what they claim is compared with the file before it is read."""
    path = checkpoint_folder(place / "run", 3) / "iteration-24.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = data.draw(edited(json.loads(raw[8 : 8 + length]))).encode()
    claimed = data.draw(st.sampled_from([len(header), 0, 2**40, 2**63]))
    with Damaged(path, claimed.to_bytes(8, "little") + header + raw[8 + length :]):
        read, error = attempt(lambda: read_checkpoint(path, q=40)[0])
        assert read.iteration == 24 if error is None else str(path) in error


def test_a_checkpoint_of_another_length_is_refused_before_its_tensors_are_read(tmp_path, monkeypatch):
    path = write_checkpoint(checkpoint(), checkpoint_folder(tmp_path, 3))
    monkeypatch.setattr("p2pft_flower.keeping.checkpoints._state", None)  # nobody gets that far
    with pytest.raises(
        DataError, match=r"iteration-24\.safetensors: θ is \(40,\) in the checkpoint, \(41,\)"
    ):
        read_checkpoint(path, q=41)


def test_a_state_far_larger_than_its_model_is_neither_read_nor_written(tmp_path, monkeypatch):
    path = write_checkpoint(checkpoint(), checkpoint_folder(tmp_path, 3))
    monkeypatch.setattr("p2pft_flower.keeping.states._VECTORS", 1)
    monkeypatch.setattr("p2pft_flower.keeping.states._MORE", 0)
    with pytest.raises(DataError, match="it claims 960 bytes, of 320 at most"):
        read_checkpoint(path, q=40)
    with pytest.raises(ConfigError, match="its state has 480 bytes, more than 320"):
        checkpoint()


def test_what_is_named_like_a_checkpoint_hides_no_good_one(tmp_path, caplog):
    folder = checkpoint_folder(tmp_path, 3)
    good = write_checkpoint(checkpoint(), folder)
    write_checkpoint(checkpoint(iteration=12), folder)
    for name in ("iteration-0024", "iteration-٢٤", "iteration-99999999", "iteration-36"):
        (folder / f"{name}.safetensors").write_bytes(b"garbage")
    (folder / "iteration-48.safetensors").mkdir()
    foreign = write_checkpoint(checkpoint(run="another", iteration=60), folder)
    kept = look_through(tmp_path, 3)
    assert (kept.run, list(kept.digests)) == ("12", [12, 24])
    for left_out in ("iteration-99999999", "iteration-36", "iteration-48", "iteration 60 is left out"):
        assert left_out in caplog.text
    assert good.exists()
    assert foreign.exists()


def test_a_server_is_no_peer(tmp_path):
    path = write_checkpoint(checkpoint(peer=SERVER), checkpoint_folder(tmp_path, SERVER))
    with pytest.raises(DataError, match=r"server\.checkpoints/iteration-24.*at `\$\.about\.of`"):
        read_checkpoint(path)
    assert ABOUT.iterations == 48


# --- what runs on this machine ------------------------------------------------------------------------------


@EXAMPLES
@given(data=st.data())
def test_a_damaged_record_of_a_rehearsal_is_named_or_is_one(data, place):
    path = place / "home" / "rehearsal" / "state.json"
    whole = path.read_bytes()
    with Damaged(path, data.draw(damaged(whole) | edited(json.loads(whole)).map(str.encode))):
        state, error = attempt(rehearsal.current)
        if error is None:
            assert isinstance(state.ended, tuple)
        else:
            assert error.startswith(str(path))
            assert "remove the file" in error


@EXAMPLES
@given(data=st.data())
def test_a_damaged_record_of_a_process_is_left_out(data, place):
    with registered("run", [2], [0, 1]):
        (path,) = (place / "home" / "running").glob("*.json")
        whole = path.read_bytes()
        with Damaged(path, data.draw(damaged(whole) | edited(json.loads(whole)).map(str.encode))):
            assert all(there.alive and there.peers for there in running())
        assert [there.peers for there in running("run")] == [(2,)]


@EXAMPLES
@given(text=st.binary(max_size=80) | st.text(max_size=30).map(str.encode))
def test_a_damaged_count_of_starts_is_named_or_grows(text, place):
    path = place / "run" / "peers" / "peer-1.starts"
    path.write_bytes(text)
    number, error = attempt(lambda: next_incarnation(place / "run", 1))
    assert number > 0 if error is None else str(path) in error


def test_the_file_of_a_log_is_read_in_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr("p2pft_flower.keeping.journal._LONGEST", 1000)
    (tmp_path / "peer-0.jsonl").write_bytes(b"x" * 5000 + b"\n")
    with pytest.raises(DataError, match=r"peer-0\.jsonl, line 1: longer than any line"):
        list(read_journal(Path(tmp_path / "peer-0.jsonl")))

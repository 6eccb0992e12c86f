"""A checkpoint's file: what is written is read again bit for bit, or known to be damaged."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from p2pft_flower.algorithms.dgd import Descent
from p2pft_flower.algorithms.exact_diffusion import Diffusion
from p2pft_flower.algorithms.gt_adam import Moments
from p2pft_flower.algorithms.p2pft import Tracking
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.keeping.about import PeerAbout
from p2pft_flower.keeping.checkpoints import (
    Checkpoint,
    CheckpointError,
    checkpoint_files,
    checkpoint_folder,
    read_checkpoint,
    restore_state,
    write_checkpoint,
)
from p2pft_flower.keeping.kept import Best
from p2pft_flower.keeping.states import state_fields

RNG = np.random.default_rng(0)
ABOUT = PeerAbout(
    config={"algorithm": "p2pft", "learning-rate": 0.1},
    iterations=48,
    model_digest="d",
    partition="iid",
    versions={},
    evaluate_every=12,
    checkpoint_every=12,
    graph=None,
    loss_weight=1.0,
    known=None,
    row={0: 0.5, 3: 0.5},
    column={1: 0.5, 3: 0.5},
    whole=True,
)


def vector(q=40, dtype=np.float32):
    return RNG.normal(size=q).astype(dtype)


def checkpoint(state=None, **changes):
    state = Tracking(vector(), vector(), vector()) if state is None else state
    made = Checkpoint(
        run="12",
        peer=3,
        iteration=24,
        about=ABOUT,
        position={"drawn": 25, "lost": 0, "order": {}},
        bytes_sent=10**12,
        seconds={"gradient": 0.1, "exchange": 1e-9, "evaluation": 3.0},
        state=state_fields(state, "p2pft"),
        live=(0, 1, 3),
    )
    return replace(made, **changes)


class Everything(NamedTuple):
    theta: np.ndarray
    half: np.ndarray
    double: np.ndarray
    counts: np.ndarray
    scalar: np.float32
    step: int
    rate: float
    seen: bool
    nothing: None


@dataclass
class AsDataclass:
    theta: np.ndarray
    best: float


@pytest.mark.parametrize(
    "state",
    [
        Tracking(vector(), vector(), vector(), vector()),
        Tracking(vector(), vector(), vector()),
        Descent(vector(dtype=np.float64)),
        Diffusion(vector(), vector(), vector()),
        Moments(vector(), vector(), vector(), vector(), vector(), 24),
        Everything(
            vector(), vector(3, np.float16), vector(5, np.float64), np.arange(6).reshape(2, 3)[:, ::-1],
            np.float32(0.1), 7, 0.1, True, None,
        ),
        AsDataclass(vector(), float("inf")),
    ],
    ids=lambda state: type(state).__name__,
)  # fmt: skip
def test_what_is_written_is_read_again_bit_for_bit(state, tmp_path):
    written = checkpoint(state)
    path = write_checkpoint(written, checkpoint_folder(tmp_path, 3))
    assert path == tmp_path / "peers" / "peer-3.checkpoints" / "iteration-24.safetensors"
    read, digest = read_checkpoint(path, "12")
    assert len(digest) == 32
    assert list(read.state) == list(written.state)
    for name, value in written.state.items():
        assert type(read.state[name]) is type(value)
        assert np.asarray(read.state[name]).tobytes() == np.asarray(value).tobytes(), name
    assert replace(read, state={}) == replace(written, state={})
    again = restore_state(lambda: state, read, "p2pft")
    assert type(again) is type(state)


@pytest.mark.parametrize("theta", [vector(), None], ids=["with its own θ", "without"])
def test_the_best_theta_is_read_again_bit_for_bit(theta, tmp_path):
    kept = Best(decided=20, iteration=10, score=0.1 + 0.2, theta=theta)
    path = write_checkpoint(checkpoint(best=kept), checkpoint_folder(tmp_path, 3))
    read, _ = read_checkpoint(path, "12", q=40)
    assert read.best[:3] == kept[:3]
    assert (read.best.theta is None) if theta is None else (read.best.theta.tobytes() == theta.tobytes())


def test_without_a_best_theta_a_file_is_what_it_was(tmp_path):
    path = write_checkpoint(checkpoint(), checkpoint_folder(tmp_path, 3))
    assert b'"best' not in path.read_bytes()
    assert read_checkpoint(path, "12")[0].best is None


@pytest.mark.parametrize(
    "best",
    [
        Best(20, 10, 0.5, vector(39)),
        Best(20, 10, 0.5, vector(dtype=np.float64)),
        Best(20, -1, 0.0, vector()),
        Best(5, 10, 0.5, vector()),
    ],
    ids=["too short", "of another type", "of no iteration", "not decided on"],
)
def test_a_best_theta_that_cannot_be_is_refused(best, tmp_path):
    path = write_checkpoint(checkpoint(best=best), checkpoint_folder(tmp_path, 3))
    with pytest.raises(DataError, match="no checkpoint"):
        read_checkpoint(path, "12")


@pytest.fixture(scope="module")
def good():
    """The bytes of a good file, and its content."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(checkpoint(), checkpoint_folder(Path(folder), 3))
        return path.read_bytes(), read_checkpoint(path)


def read_bytes(data):
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint_folder(Path(folder), 3) / "iteration-24.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        return read_checkpoint(path)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_is_never_read_as_something_else(data, good):
    """Where the format does not care (a blank of its padding) the content is the same; else it is refused."""
    intact, (content, digest) = good
    position = data.draw(st.integers(0, len(intact) - 1))
    damaged = bytearray(intact)
    damaged[position] ^= data.draw(st.integers(1, 255))
    try:
        read, its_digest = read_bytes(bytes(damaged))
    except DataError as error:
        told = str(error)
    else:
        assert its_digest == digest
        assert replace(read, state={}) == replace(content, state={})
        assert all(np.array_equal(read.state[k], v) for k, v in content.state.items() if v is not None)
        return
    assert "iteration-24.safetensors" in told


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_file_that_was_cut_or_has_more_is_refused(data, good):
    intact, _ = good
    cut = data.draw(st.integers(0, len(intact) - 1))
    for damaged in (
        intact[:cut],
        intact[:cut] + bytes(len(intact) - cut),
        intact + data.draw(st.binary(min_size=1)),
    ):
        if damaged != intact:
            with pytest.raises(DataError, match="torn or altered"):
                read_bytes(damaged)


def test_every_bit_of_a_vector_counts(good):
    intact, _ = good
    damaged = bytearray(intact)
    damaged[-1] ^= 1  # of the last number
    with pytest.raises(DataError, match="its digest is not that of its content"):
        read_bytes(bytes(damaged))


def test_a_file_of_another_peer_iteration_or_run_is_refused(tmp_path):
    own = checkpoint_folder(tmp_path, 3)
    path = write_checkpoint(checkpoint(), own)
    with pytest.raises(DataError, match="it is of run 12, not of run 13"):
        read_checkpoint(path, "13")
    for foreign in (own / "iteration-36.safetensors", checkpoint_folder(tmp_path, 2) / path.name):
        foreign.parent.mkdir(exist_ok=True)
        foreign.write_bytes(path.read_bytes())
        with pytest.raises(DataError, match="peer 3's checkpoint of iteration 24, out of its place"):
            read_checkpoint(foreign)


def test_a_file_of_another_version_or_kind_says_so(tmp_path):
    from safetensors.numpy import save_file

    path = checkpoint_folder(tmp_path, 3) / "iteration-24.safetensors"
    path.parent.mkdir(parents=True)
    save_file({"theta": vector()}, path, {"p2pft": '{"schema": "p2pft.checkpoint/1", "digest": "0"}'})
    with pytest.raises(
        DataError, match=r"schema 'p2pft.checkpoint/1', this version reads 'p2pft.checkpoint/2'"
    ):
        read_checkpoint(path)
    save_file({"theta": vector()}, path, {"schema": "p2pft.tail/1"})
    with pytest.raises(DataError, match="no checkpoint"):
        read_checkpoint(path)


def test_the_digest_is_of_content_not_of_the_moment(tmp_path):
    one = checkpoint()
    first, second = (
        read_checkpoint(write_checkpoint(one, checkpoint_folder(tmp_path, 3)))[1] for _ in range(2)
    )
    assert first == second
    other = replace(one, bytes_sent=1)
    assert read_checkpoint(write_checkpoint(other, checkpoint_folder(tmp_path, 3)))[1] != first


class WithAList(NamedTuple):
    theta: np.ndarray
    history: list


@pytest.mark.parametrize(
    ("state", "what"),
    [
        (WithAList(vector(), [vector()]), "'history' of its state is a list"),
        ({"theta": vector()}, "its state is a dict"),
        (vector(), "its state is a ndarray"),
        (Descent(np.array(["a"])), "'theta' of its state is a ndarray"),
    ],
)
def test_a_state_that_cannot_be_kept_is_refused_with_the_remedy(state, what):
    with pytest.raises(ConfigError, match=f"algorithm = 'mine:Method': {what}.*checkpoint-every = -1"):
        state_fields(state, "mine:Method")


def test_a_method_that_was_changed_does_not_take_up_an_old_state(tmp_path):
    read, _ = read_checkpoint(write_checkpoint(checkpoint(), checkpoint_folder(tmp_path, 3)))
    with pytest.raises(
        DataError, match="'p2pft' has theta, velocity, its checkpoint of iteration 24 has theta, tau"
    ):
        restore_state(lambda: Descent(vector()), read, "p2pft")
    with pytest.raises(DataError, match=r"θ is \(41,\) float32 here, \(40,\) float32 in its checkpoint"):
        restore_state(lambda: Tracking(*[vector(41)] * 3), read, "p2pft")


# --- what a disk may do -------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """Mount a file system of ``size`` at ``folder``, where this machine lets us; None where not."""
    folder.mkdir()
    mounted = os.geteuid() == 0 and (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "p2pft-test", str(folder)],
            capture_output=True, check=False,
        ).returncode == 0
    )  # fmt: skip
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_clear_error_and_harms_no_good_checkpoint(tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", "256k") as mounted:
        folder = checkpoint_folder(tmp_path / "disk", 3)
        if not mounted:  # the same errno, from the call that brings the file to disk

            def full(number):
                raise OSError(28, "No space left on device")

        good = write_checkpoint(checkpoint(), folder)
        before = good.read_bytes()
        if not mounted:
            monkeypatch.setattr(os, "fsync", full)
        big = checkpoint(Descent(vector(100_000)), iteration=36)
        with pytest.raises(
            CheckpointError, match=r"peer 3: .* iteration 36 .*No space left on device.*iteration-36"
        ) as e:
            write_checkpoint(big, folder)
        assert e.value.peer == 3
        assert "Make room there" in str(e.value)
        assert good.read_bytes() == before
        assert list(folder.iterdir()) == [
            good
        ]  # nothing half-written is left, which would keep the disk full


def test_a_file_in_the_place_of_the_folder_is_a_clear_error(tmp_path):
    folder = checkpoint_folder(tmp_path, 3)
    folder.parent.mkdir()
    folder.write_text("no folder")
    with pytest.raises(CheckpointError, match=r"peer 3: .*(Not a directory|File exists).*peer-3.checkpoints"):
        write_checkpoint(checkpoint(), folder)


def test_a_folder_that_has_become_read_only_is_a_clear_error_and_harms_no_good_checkpoint(
    tmp_path, monkeypatch
):
    folder = checkpoint_folder(tmp_path, 3)
    good = write_checkpoint(checkpoint(), folder)
    before, real = good.read_bytes(), Path.open

    def read_only(path, mode="r", *more, **options):
        if "w" in mode:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, mode, *more, **options)

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(CheckpointError, match=r"peer 3: .* iteration 36 .*Read-only file system.*writable"):
        write_checkpoint(checkpoint(iteration=36), folder)
    assert good.read_bytes() == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_earlier_files_and_no_half_one_in_place(call, tmp_path, monkeypatch):
    folder = checkpoint_folder(tmp_path, 3)
    good = write_checkpoint(checkpoint(), folder)

    def crash(*_):
        raise KeyboardInterrupt  # nothing that the writer would catch

    monkeypatch.setattr(os, call, crash)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(checkpoint(iteration=36), folder)
    monkeypatch.undo()
    assert checkpoint_files(folder) == {24: good}
    read_checkpoint(good)
    write_checkpoint(checkpoint(iteration=36), folder)  # what was left there is in nobody's way
    assert list(checkpoint_files(folder)) == [24, 36]


def test_a_disk_that_fails_when_the_new_name_is_written_is_told_and_leaves_whole_files_only(
    tmp_path, monkeypatch
):
    folder = tmp_path / "peer-3.checkpoints"
    first = write_checkpoint(checkpoint(iteration=12), folder)
    real = os.fsync

    def fail(number):
        if Path(f"/proc/self/fd/{number}").readlink() == folder:
            raise OSError(5, "Input/output error")
        real(number)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"iteration 24 cannot be written: .*Those of other iterations"):
        write_checkpoint(checkpoint(iteration=24), folder)
    monkeypatch.undo()
    files = checkpoint_files(folder)
    assert (list(files), files[12]) == ([12, 24], first)
    assert read_checkpoint(files[24])[0].iteration == 24

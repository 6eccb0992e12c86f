"""Checkpoints that cannot be written, or are torn."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from p2pft_flower.errors import DataError
from p2pft_flower.keeping.checkpoints import checkpoint_files, checkpoint_folder, read_checkpoint
from tests.faults.federation import PATIENT, Fault, Federation, injects
from tests.faults.peer import Orders

HELD = Orders(hold=("gradient 20",))
SURVIVORS = [0, 1, 2, 4, 5]


@injects(Fault.UNWRITABLE)
def test_who_cannot_write_checkpoints_leaves_with_the_reason_and_the_others_go_on(tmp_path):
    with Federation(tmp_path, orders={3: HELD}, checkpoint_every=10, **PATIENT) as peers:
        peers.hold(3, "gradient 20")
        folder = checkpoint_folder(tmp_path, 3)
        folder.rename(tmp_path / "moved")
        folder.write_text("a file where the folder was")
        peers.release(3)
        ended = peers.ended()
        # Checkpoints are written beside training: that of iteration 10 may be late.
        assert re.search("the checkpoint of iteration [12]0 cannot be written", ended[3].error), ended[
            3
        ].error
        peers.check_survivors(SURVIVORS, ended)
        peers.check_told(SURVIVORS, {3: "it has left"})


@injects(Fault.FULL_DISK)
def test_who_cannot_write_its_log_leaves_with_the_reason_and_the_others_go_on(tmp_path):
    with Federation(
        tmp_path, orders={3: Orders(full="gradient 20")}, checkpoint_every=10, **PATIENT
    ) as peers:
        ended = peers.ended()
        assert "peer-3.jsonl cannot be written: File too large" in ended[3].error
        peers.check_survivors(SURVIVORS, ended)
        peers.check_told(SURVIVORS, {3: "File too large"})


@injects(Fault.FULL_DISK, Fault.KILL_ONE)
def test_who_cannot_note_a_view_leaves_it_and_the_others_go_on(tmp_path):
    with Federation(tmp_path, orders={3: HELD, 1: Orders(full="view")}, checkpoint_every=10) as peers:
        peers.hold(3, "gradient 20")
        peers.kill(3)
        ended = peers.ended()
        assert "peer-1.jsonl cannot be written: File too large" in ended[1].error
        peers.check_survivors([0, 2, 4, 5], ended)
        peers.check_told([0, 2, 4, 5], {3: "crashed"})
        peers.check_told([0, 2, 4, 5], {1: "File too large"}, number=2)


def no_disks() -> str:
    """Return why small disks cannot be mounted here; empty where they can."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return "needs root to mount a small disk"
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return f"small disks cannot be mounted here: {tried.stderr.strip()}" if tried.returncode else ""


WHY_NOT = no_disks()


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "small disks can be mounted")
@injects(Fault.FULL_DISK)
def test_who_has_no_room_for_checkpoints_leaves_with_the_reason_and_the_others_go_on(tmp_path):
    with Federation(tmp_path, orders={3: Orders(disk=5 * 4096)}, checkpoint_every=10, **PATIENT) as peers:
        ended = peers.ended()
        assert "cannot be written: No space left on device" in ended[3].error
        peers.check_survivors(SURVIVORS, ended)
        peers.check_told(SURVIVORS, {3: "No space left on device"})


@injects(Fault.KILL_CHECKPOINT)
def test_who_is_killed_while_it_writes_a_checkpoint_leaves_the_one_before_whole(tmp_path):
    orders = {3: Orders(hold=("checkpoint 30",))}
    with Federation(tmp_path, orders=orders, checkpoint_every=10) as peers:
        peers.hold(3, "checkpoint 30")
        peers.kill(3)
        ended = peers.ended()
        peers.check_survivors(SURVIVORS, ended)
        peers.check_told(SURVIVORS, {3: "crashed"})
    folder = checkpoint_folder(tmp_path, 3)
    files = checkpoint_files(folder)
    assert max(files) == 20
    assert read_checkpoint(files[20])[0].iteration == 20
    torn = folder / "iteration-30.safetensors.partial"
    torn.rename(folder / "iteration-30.safetensors")
    with pytest.raises(DataError, match="torn or altered"):
        read_checkpoint(folder / "iteration-30.safetensors")

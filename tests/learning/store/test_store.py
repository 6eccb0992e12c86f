"""The store of trunk outputs: right rows whatever happens, each computed once, within a limit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from p2pft_flower.errors import DataError
from p2pft_flower.learning.store.trunk_store import Field, Rows, Store, cache

FIELDS = (Field("tokens", (5, 7), "float16"), Field("token", (9,), "float32"))
ABOUT = {"model": "vit", "layout": "tail", "dtype": "float16"}
DEADLINE = 60.0  # seconds; only a broken test waits that long
BIG = (Field("tokens", (64, 512), "float32"),)  # 128 KiB a row: writing a batch takes a while
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "home"))


def key_of(image: int) -> bytes:
    return hashlib.sha256(str(image).encode()).digest()[:16]


def plain(images, fields=FIELDS):
    """Compute without any store."""
    arrays = []
    for number, field in enumerate(fields):
        rows = [
            np.random.default_rng([image, number]).standard_normal(field.shape, np.float32)
            for image in images
        ]
        arrays.append(np.stack(rows).astype(field.dtype))
    return tuple(arrays)


class Trunk:
    """Computes images, and remembers which and in which batches."""

    def __init__(self, images, fields=FIELDS) -> None:
        self.images, self.fields, self.batches = list(images), fields, []

    def __call__(self, positions):
        self.batches.append([self.images[p] for p in positions])
        return plain(self.batches[-1], self.fields)

    @property
    def computed(self):
        return [image for batch in self.batches for image in batch]


def fill(store: Store, images, batch=4, progress=None) -> tuple[Rows, Trunk]:
    trunk = Trunk(images, store.fields)
    return store.fill([key_of(i) for i in images], trunk, batch=batch, progress=progress), trunk


def opened(name="store", fields=FIELDS, about=ABOUT) -> Store:
    return Store(cache.store_folder({"name": name}), fields, about)


def check(rows: Rows, images, fields=FIELDS) -> None:
    assert len(rows) == len(images)
    for stored, wanted in zip(rows.gather(np.arange(len(images))), plain(images, fields), strict=True):
        np.testing.assert_array_equal(stored, wanted, strict=True)


# --- what is stored ---


def test_rows_are_what_was_computed_field_by_field():
    rows, trunk = fill(opened(), range(10))
    check(rows, range(10))
    assert trunk.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_gather_returns_fresh_contiguous_arrays_in_the_order_asked_for():
    rows, _ = fill(opened(), range(10))
    order = np.array([7, 0, 7, 3])
    for array, wanted in zip(rows.gather(order), plain(order), strict=True):
        np.testing.assert_array_equal(array, wanted, strict=True)
        assert array.flags.c_contiguous
        assert array.flags.writeable
        array[:] = 0
    check(rows, range(10))


def test_prefetching_changes_nothing():
    rows, _ = fill(opened(), range(10))
    check(rows, range(10))


def test_only_missing_images_are_computed_by_a_later_process():
    first = opened()
    fill(first, range(6))
    first.close()
    rows, trunk = fill(opened(), [8, 5, 3, 9, 0])
    assert trunk.computed == [8, 9]
    check(rows, [8, 5, 3, 9, 0])


def test_an_image_that_occurs_twice_is_computed_once():
    rows, trunk = fill(opened(), [1, 2, 1, 1])
    assert trunk.computed == [1, 2]
    check(rows, [1, 2, 1, 1])
    assert rows.nbytes == 2 * opened().row_bytes


def test_no_images_make_no_rows():
    rows, trunk = fill(opened(), [])
    assert len(rows) == 0
    assert trunk.batches == []
    assert [a.shape for a in rows.gather(np.empty(0, np.int64))] == [(0, 5, 7), (0, 9)]


def test_fields_start_at_multiples_of_64_bytes():
    store = opened()
    assert store.row_bytes == 128 + 64
    fill(store, range(3))
    assert (store.folder / "values").stat().st_size == 3 * store.row_bytes
    assert (store.folder / "index").stat().st_size == 3 * 24


def test_progress_counts_the_missing_rows():
    told = []
    store = opened()
    fill(store, range(3))
    fill(store, range(12), progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 9), (8, 9), (9, 9)]


def test_other_parts_make_another_folder_and_their_order_does_not():
    folder = cache.store_folder({"weights": "a", "dtype": "float16"})
    assert folder == cache.store_folder({"dtype": "float16", "weights": "a"})
    assert folder != cache.store_folder({"weights": "b", "dtype": "float16"})
    assert folder.parent == Path(os.environ["P2PFT_HOME"]) / "cache"


# --- what is refused ---


@pytest.mark.parametrize(
    ("fields", "about", "what"),
    [
        ((Field("tokens", (5, 7), "float32"), FIELDS[1]), ABOUT, "fields"),
        (FIELDS[:1], ABOUT, "fields"),
        (FIELDS, ABOUT | {"model": "deit"}, "about"),
    ],
)
def test_a_folder_with_other_contents_is_refused_by_file(fields, about, what):
    folder = opened().folder
    with pytest.raises(DataError, match=rf"{folder}/meta.json: {what} is .*p2pft cache clear {folder.name}"):
        opened(fields=fields, about=about)


def test_another_schema_is_refused():
    folder = opened().folder
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"schema": "p2pft.cache/2"}))
    with pytest.raises(DataError, match=r"schema is p2pft.cache/2, expected p2pft.cache/1"):
        opened()


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda meta: meta.write_text("{"), "no readable JSON"),
        (lambda meta: meta.unlink(), "the file is missing"),
    ],
)
def test_a_damaged_meta_file_is_refused_and_can_be_cleared(harm, what):
    store = opened()
    fill(store, range(3))
    store.close()
    harm(store.folder / "meta.json")
    with pytest.raises(DataError, match=what):
        opened()
    assert cache.stores()[0].about is None
    assert cache.remove(store.folder)
    check(fill(opened(), range(3))[0], range(3))


def test_a_value_too_large_for_the_field_is_an_error_and_not_an_infinity():
    def compute(positions):
        tokens, token = plain(positions)
        tokens = tokens.astype(np.float32)
        tokens[-1, 2, 3] = -7e4
        return tokens, token

    with pytest.raises(DataError, match=r"'tokens' has values up to 7e\+04, too large for float16.*float32"):
        opened().fill([key_of(i) for i in range(3)], compute, batch=2)
    check(fill(opened(), range(3))[0], range(3))


def test_values_that_were_not_finite_before_are_stored_as_they_are():
    def compute(positions):
        tokens, token = plain(positions)
        tokens[0, 0, 0], token[0, 0] = np.nan, np.inf
        return tokens, token

    tokens, token = opened().fill([key_of(0)], compute, batch=2).gather(np.array([0]))
    assert np.isnan(tokens[0, 0, 0])
    assert np.isinf(token[0, 0])


@pytest.mark.parametrize(
    ("keys", "compute", "batch", "what"),
    [
        ([b"short"], Trunk([0]), 1, "key 0 has 5 bytes, not 16"),
        ([key_of(0)], Trunk([0]), 0, "batch = 0"),
        ([key_of(0)], lambda positions: plain(positions)[:1], 1, "1 arrays were computed for 2 fields"),
        ([key_of(0)], lambda positions: plain([0, 1]), 1, r"'tokens' has shape \(2, 5, 7\), expected \(1, 5"),
    ],
)
def test_what_does_not_fit_is_refused(keys, compute, batch, what):
    with pytest.raises(ValueError, match=what):
        opened().fill(keys, compute, batch=batch)


def test_an_error_of_the_trunk_comes_through_and_its_images_can_be_computed_again():
    def broken(positions):
        raise FileNotFoundError("image 3")

    store = opened()
    with pytest.raises(FileNotFoundError, match="image 3"):
        store.fill([key_of(3)], broken, batch=1)
    check(fill(store, [3])[0], [3])
    assert sorted(f.name for f in store.folder.iterdir()) == ["in-use", "index", "meta.json", "values"]


# --- crashes and damage ---


@pytest.mark.parametrize("file", ["values", "index"])
def test_a_file_cut_short_anywhere_costs_only_the_rows_that_it_lost(file):
    images = range(4)
    store = opened()
    fill(store, images)
    store.close()
    whole = {name: (store.folder / name).read_bytes() for name in ("values", "index")}
    size = len(whole[file]) // 4
    for length in {0, 1, size - 1, size, size + 1, 2 * size, 3 * size + size // 2, 4 * size - 1}:
        for name, content in whole.items():
            (store.folder / name).write_bytes(content)
        os.truncate(store.folder / file, length)
        rows, trunk = fill(opened(), images)
        check(rows, images)
        assert trunk.computed == list(images)[length // size :]
        again, trunk = fill(opened(), images)
        check(again, images)
        assert trunk.computed == []


@pytest.mark.parametrize("file", ["values", "index"])
def test_a_flipped_byte_is_found_told_and_its_row_computed_again(file, caplog):
    images = range(4)
    store = opened()
    fill(store, images)
    store.close()
    path = store.folder / file
    whole = path.read_bytes()
    for offset in range(0, len(whole), 7):
        harmed = bytearray(whole)
        harmed[offset] ^= 0x10
        path.write_bytes(harmed)
        caplog.clear()
        rows, trunk = fill(opened(), images)
        check(rows, images)
        row = offset // (len(whole) // 4)
        assert trunk.computed == [row]
        is_key = file == "index" and offset % 24 < 16  # then the row has a name that nobody asks for
        if not is_key:
            assert f"{store.folder}/values: 1 damaged rows ({row})" in caplog.text
        os.truncate(store.folder / "values", 4 * store.row_bytes)
        os.truncate(store.folder / "index", 4 * 24)


def test_a_row_under_the_key_of_another_image_is_not_used():
    store = opened()
    fill(store, range(2))
    store.close()
    index = store.folder / "index"
    records = index.read_bytes()
    index.write_bytes(records[24:40] + records[16:24] + records[:16] + records[40:])
    rows, trunk = fill(opened(), range(2))
    assert trunk.computed == [0, 1]
    check(rows, range(2))


def test_what_a_killed_writer_left_behind_is_overwritten():
    store = opened()
    fill(store, range(2))
    with (store.folder / "values").open("ab") as values:
        values.write(b"\xff" * 500)
    with (store.folder / "index").open("ab") as index:
        index.write(b"\xff" * 23)
    rows, trunk = fill(store, range(4))
    assert trunk.computed == [2, 3]
    check(rows, range(4))
    assert (store.folder / "index").stat().st_size == 4 * 24


def test_a_verified_row_is_not_given_up_for_a_later_one_that_was_not_verified():
    first, second = opened(), opened()
    fill(first, range(2))
    with second._index():
        claim = second._claim({key_of(0): 0}, 1, ignore_others=False)
    with claim:
        second._publish(claim.keys, plain([0]))  # as after a deadline: image 0 once more, in row 2 …
    with (second.folder / "values").open("r+b") as values:
        values.seek(2 * second.row_bytes)
        values.write(b"\xff" * 20)  # … where the disk loses it
    rows, trunk = fill(first, range(3))
    assert trunk.computed == [2]
    check(rows, range(3))


def test_an_index_that_shrinks_while_in_use_is_refused():
    store = opened()
    fill(store, range(2))
    os.truncate(store.folder / "index", 24)
    with pytest.raises(DataError, match=r"index: it had 2 records and now has 1"):
        fill(store, range(4))


BUILDER = """
import sys
from pathlib import Path
from tests.learning.store.test_store import BIG, Trunk, key_of
from p2pft_flower.learning.store.trunk_store import Store

images = range(24)
trunk = Trunk(images, BIG)

def say(what):
    print(what, flush=True)
    sys.stdin.readline()  # go on when the other side says so

def compute(positions):
    arrays = trunk(positions)
    say("computed")
    return arrays

store = Store(Path(sys.argv[1]), BIG, {"model": "killed"})
say("opened")
store.fill([key_of(i) for i in images], compute, batch=4, progress=lambda *_: say("stored"))
"""


def test_a_store_whose_builders_were_killed_at_random_moments_is_completed_rightly(tmp_path):
    """Each builder is killed while it computes (after "opened", "stored") or writes (after "computed")."""
    folder = cache.store_folder({"name": "killed"})
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for steps in (1, 2, 2, 3, 4):
        with subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment,
        ) as builder:
            for _ in range(steps):
                assert builder.stdout.readline() in ("opened\n", "computed\n", "stored\n")
                builder.stdin.write("\n")
            builder.kill()  # how far it comes until then is chance
    records = (folder / "index").stat().st_size // 24
    assert 8 <= records < 24  # one batch of four is there for certain where "stored" was read
    store = Store(folder, BIG, {"model": "killed"})
    rows, trunk = fill(store, range(24))
    check(rows, range(24), BIG)
    assert len(trunk.computed) == 24 - records
    assert not list(folder.glob("claim-*"))


# --- several processes ---

SPAWN = multiprocessing.get_context("spawn")


def build(folder, images, batch, meet, meet_computing, results):
    """Fill in a process of its own; tell which images it computed and whether all rows are right."""
    trunk = Trunk(images)

    def compute(positions):
        if meet_computing is not None and not trunk.batches:
            meet_computing.wait(DEADLINE)
        return trunk(positions)

    store = Store(folder, FIELDS, ABOUT)
    meet.wait(DEADLINE)
    rows = store.fill([key_of(i) for i in images], compute, batch=batch)
    check(rows, images)
    results.put(trunk.computed)


def build_at_once(works, *, computing_at_once):
    """Return what each process computed, one for each (images, batch)."""
    folder, meet, results = cache.store_folder({"name": "shared"}), SPAWN.Barrier(len(works)), SPAWN.Queue()
    meet_computing = SPAWN.Barrier(len(works)) if computing_at_once else None
    processes = [
        SPAWN.Process(target=build, args=(folder, images, batch, meet, meet_computing, results))
        for images, batch in works
    ]
    for process in processes:
        process.start()
    computed = [results.get(timeout=DEADLINE) for _ in works]
    for process in processes:
        process.join(DEADLINE)
        assert process.exitcode == 0
    return computed


def test_processes_that_build_at_once_share_the_work_and_compute_no_image_twice():
    works = [(range(150), 8), (range(149, -1, -1), 5), (range(60, 200), 11)]
    computed = build_at_once(works, computing_at_once=True)  # all three are computing at some moment
    assert all(computed)
    assert sorted(image for images in computed for image in images) == list(range(200))


def test_processes_that_want_different_images_do_not_wait_for_one_another():
    """Their first batches wait for each other at a barrier: in turns they would never get past it."""
    computed = build_at_once([(range(5), 5), (range(5, 10), 5)], computing_at_once=True)
    assert sorted(computed) == [list(range(5)), list(range(5, 10))]


def test_who_wants_what_another_computes_gets_it_without_computing():
    """The second thread has its own store object, as a process would; the first is held while it computes."""
    computing, go_on, told = threading.Event(), threading.Event(), []
    first, second = opened(), opened()
    trunk = Trunk(range(4))

    def slow(positions):
        computing.set()
        assert go_on.wait(DEADLINE)
        return trunk(positions)

    thread = threading.Thread(
        target=lambda: first.fill([key_of(i) for i in range(4)], slow, batch=4), daemon=True
    )
    thread.start()
    assert computing.wait(DEADLINE)

    def progress(done, total):
        told.append((done, total))
        go_on.set()  # after the second has computed all that the first does not

    rows, other = fill(second, range(6), progress=progress)
    thread.join(DEADLINE)
    assert other.computed == [4, 5]
    assert trunk.computed == [0, 1, 2, 3]
    assert told == [(2, 6), (6, 6)]
    check(rows, range(6))


def test_images_that_another_process_holds_without_a_result_are_computed_after_a_deadline(
    monkeypatch, caplog
):
    """The other one is alive, but suspended: its claim stays locked."""
    first, second = opened(), opened()
    with first._index():
        claim = first._claim({key_of(i): i for i in range(3)}, 3, ignore_others=False)
    monkeypatch.setattr(cache, "PATIENCE", 0.05)
    with claim:
        rows, trunk = fill(second, range(3))
    assert trunk.computed == [0, 1, 2]
    check(rows, range(3))
    assert "other processes hold 3 images" in caplog.text


def test_a_writers_lock_that_is_never_freed_is_an_error_after_a_deadline(monkeypatch):
    first, second = opened(), opened()
    monkeypatch.setattr(cache, "PATIENCE", 0.05)
    with first._index(), pytest.raises(DataError, match=r"index: another process has held its lock"):
        fill(second, range(3))


# --- disk and limit ---


@contextlib.contextmanager
def largest_file(size):
    """Let the system refuse to write files beyond ``size`` bytes, after writing up to there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_is_an_error_that_says_what_to_do_and_the_store_stays_usable():
    store = opened(fields=BIG)
    fill(store, range(4))
    row = store.row_bytes
    with (
        largest_file(6 * row + row // 2),
        pytest.raises(DataError, match=rf"{store.folder}: .*File too large.*p2pft cache clear.*P2PFT_HOME"),
    ):
        fill(store, range(12))
    rows, trunk = fill(store, range(12))
    assert trunk.computed == list(range(4, 12))
    check(rows, range(12), BIG)


def test_a_home_that_cannot_be_written_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("P2PFT_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=rf"{tmp_path}/file/cache/.*Not a directory.*P2PFT_HOME"):
        opened()


def used_at(store: Store, seconds: float) -> None:
    os.utime(store.folder / "in-use", (seconds, seconds))


def test_beyond_the_limit_the_least_recently_used_stores_that_nobody_uses_are_removed(caplog):
    caplog.set_level(logging.INFO)
    stores = {name: opened(name) for name in ("old", "older", "busy", "new")}
    for name, store in stores.items():
        fill(store, range(20))
        used_at(store, {"busy": 1, "older": 2, "old": 3, "new": 4}[name])
        if name != "busy":
            store.close()
    total = sum(record.bytes for record in cache.stores())
    cache.set_limit(total + 1000)  # one goes, and that is enough for what comes
    rows, _ = fill(opened("coming", about={"model": "coming"}), range(20))
    check(rows, range(20))
    left = {record.folder for record in cache.stores()}
    assert {name for name, store in stores.items() if store.folder not in left} == {"older"}
    assert f"removed the store {stores['older'].folder.name} (vit," in caplog.text
    assert "above the limit" not in caplog.text


def test_what_does_not_fit_the_limit_is_stored_all_the_same_with_a_warning(caplog):
    cache.set_limit(1000)
    rows, _ = fill(opened(), range(20))
    check(rows, range(20))
    assert "above the limit of 1.0 kB" in caplog.text


def test_a_store_in_use_is_not_removed_until_it_is_closed_and_mapped_rows_stay_readable():
    store = opened()
    rows, _ = fill(store, range(5))
    assert not cache.remove(store.folder)
    store.close()
    assert cache.remove(store.folder)
    assert not store.folder.exists()
    check(rows, range(5))
    check(fill(opened(), range(5))[0], range(5))


def test_rows_keep_their_store_in_use():
    rows, _ = fill(opened(), range(5))
    assert cache.stores()[0].in_use
    del rows
    assert not cache.stores()[0].in_use


def test_a_store_that_is_removed_while_another_process_opens_it_is_made_anew():
    """Whoever gets the lock of a removed folder sees that, and starts again."""
    store = opened()
    fill(store, range(5))
    folder = store.folder
    store.close()
    opening = threading.Event()
    original, attempts = cache.lock, []

    def lock(descriptor, mode, path):
        if path.name == "in-use" and not attempts:
            attempts.append(path)
            assert cache.remove(folder)
            opening.set()
        original(descriptor, mode, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "lock", lock)
        again = opened()
    assert opening.is_set()
    check(fill(again, range(5))[0], range(5))
    assert cache.stores()[0].in_use


def test_the_limit_has_a_default_and_survives_the_process():
    assert cache.get_limit() == 50_000_000_000
    cache.set_limit(123)
    assert cache.get_limit() == 123


@pytest.mark.parametrize(("content", "shown"), [(b"much", "much"), (b"\xff\xfe1", "\ufffd\ufffd1")])
def test_a_damaged_limit_is_refused_by_file(content, shown):
    cache.set_limit(1)
    file = Path(os.environ["P2PFT_HOME"]) / "cache" / "limit"
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"{file}: '{shown}' is no number of bytes.*p2pft cache limit 50GB"):
        fill(opened(), range(2))


@pytest.mark.parametrize("leads_to", ["nowhere/at-all", "elsewhere"])
def test_a_link_in_the_place_of_the_lock_is_named_at_once_and_not_followed(leads_to, tmp_path):
    store = opened()
    store.close()
    lock = store.folder / "in-use"
    lock.unlink()
    lock.symlink_to(tmp_path / leads_to)
    with pytest.raises(DataError, match=rf"{lock}: a link in the place of a file.*remove it"):
        opened()
    assert cache.stores() == []
    with pytest.raises(DataError, match=r"the cache cannot be used \(Too many levels of symbolic links"):
        cache.remove(store.folder)
    assert not (tmp_path / "elsewhere").exists()
    lock.unlink()
    check(fill(opened(), range(5))[0], range(5))


def test_a_limit_with_more_digits_than_any_disk_has_bytes_is_refused_by_file():
    cache.set_limit(1)
    file = Path(os.environ["P2PFT_HOME"]) / "cache" / "limit"
    file.write_text("9" * 5000)
    with pytest.raises(DataError, match=rf"{file}: '9+' is no number of bytes"):
        cache.get_limit()

"""Which peer holds which images."""

from __future__ import annotations

import logging
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data.class_groups import class_owners
from p2pft_flower.learning.data.datasets import load_dataset
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.data.partitions import draw_shots, partition_images, resolve_partition
from p2pft_flower.learning.settings import require_here

NUMBERED = tuple(str(c) for c in range(400))
LABELS = np.random.default_rng(5).integers(0, 6, 300)


def held(parts, labels):
    return [np.unique(labels[p]).tolist() for p in parts]


def test_four_peers_hold_the_digits_of_table_1():
    labels = load_dataset("digits").train.labels
    spec = resolve_partition("auto", "digits", 4, NUMBERED[:10])
    assert spec == "classes:0-1,2-3,4-6,7-9"
    parts = partition_images(spec, labels, 4, NUMBERED[:10], seed=0)
    assert held(parts, labels) == [[0, 1], [2, 3], [4, 5, 6], [7, 8, 9]]
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 8, 9, 10])
def test_auto_gives_up_to_ten_peers_all_ten_digits_none_to_two(n):
    labels = load_dataset("digits").train.labels
    spec = resolve_partition("auto", "digits", n, NUMBERED[:10])
    classes = held(partition_images(spec, labels, n, NUMBERED[:10], seed=0), labels)
    assert sorted(c for some in classes for c in some) == list(range(10))
    assert max(map(len, classes)) - min(map(len, classes)) <= 1


def test_auto_falls_back_to_dirichlet_where_peers_outnumber_classes():
    assert resolve_partition("auto", "digits", 11, NUMBERED[:10]) == "dirichlet:0.5"
    assert resolve_partition("auto", "folder:/x", 4, NUMBERED[:3]) == "dirichlet:0.5"


def test_table_1_is_for_digits_only_and_what_is_asked_for_is_kept():
    assert resolve_partition("auto", "folder:/x", 4, NUMBERED[:10]) == "classes:0-2,3-5,6-7,8-9"
    assert resolve_partition("iid", "digits", 4, NUMBERED[:10]) == "iid"


def test_plus_joins_ranges_and_a_class_may_stand_alone():
    parts = partition_images("classes:0-1+5,2+4,3", LABELS, 3, NUMBERED[:6], seed=0)
    assert held(parts, LABELS) == [[0, 1, 5], [2, 4], [3]]
    assert all((np.diff(p) > 0).all() and p.dtype == np.int64 for p in parts)


def test_images_that_nobody_is_given_are_left_out_and_said(caplog):
    with caplog.at_level(logging.WARNING):
        parts = partition_images("classes:0,2", LABELS, 2, NUMBERED[:6], seed=0)
    assert held(parts, LABELS) == [[0], [2]]
    unused = int(np.isin(LABELS, [1, 3, 4, 5]).sum())
    assert f"leaves {unused} of 300 training images unused" in caplog.text


@pytest.mark.parametrize("n", [1, 2, 7, 30])
@pytest.mark.parametrize("spec", ["iid", "dirichlet:0.5", "dirichlet:100"])
def test_random_partitions_deal_every_image_to_one_peer_and_leave_no_peer_empty(spec, n):
    parts = partition_images(spec, LABELS, n, NUMBERED[:6], seed=3)
    assert len(parts) == n
    assert min(map(len, parts)) >= 1
    assert sorted(np.concatenate(parts)) == list(range(300))
    assert all((np.diff(p) > 0).all() and p.dtype == np.int64 for p in parts)


@pytest.mark.parametrize("spec", ["iid", "dirichlet:0.5"])
def test_the_seed_alone_decides_a_random_partition(spec):
    first, again, other = (partition_images(spec, LABELS, 5, NUMBERED[:6], seed=s) for s in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_iid_peers_hold_even_shares_of_every_class_and_a_small_alpha_makes_them_uneven():
    labels = load_dataset("digits").train.labels

    def spread(spec):
        shares = [
            np.bincount(labels[p], minlength=10) / len(p)
            for p in partition_images(spec, labels, 8, NUMBERED[:10], 0)
        ]
        return np.std(shares, axis=0).mean()

    sizes = [len(p) for p in partition_images("iid", labels, 8, NUMBERED[:10], 0)]
    assert max(sizes) - min(sizes) <= 1
    assert spread("iid") < 0.04 < spread("dirichlet:1") < spread("dirichlet:0.1")


@pytest.mark.parametrize("seed", range(4))
def test_64_peers_share_the_digits_quickly(seed):
    labels = load_dataset("digits").train.labels
    spec = resolve_partition("auto", "digits", 64, NUMBERED[:10])
    start = time.process_time()
    parts = partition_images(spec, labels, 64, NUMBERED[:10], seed=seed)
    assert time.process_time() - start < 5
    assert min(map(len, parts)) >= 2
    assert sum(map(len, parts)) == len(labels)


def test_a_dirichlet_draw_that_leaves_a_peer_short_is_drawn_again_without_a_warning():
    # An even share is 10 images; at this α the library needs several draws for peers of at least one.
    labels = np.arange(300) % 6
    parts = [partition_images("dirichlet:0.5", labels, 30, NUMBERED[:6], seed=s) for s in range(6)]
    assert all(min(map(len, p)) >= 1 for p in parts)


NAMED = ("cat", "dog", "great-tit", "x-ray", "C++", "wolf")


@pytest.mark.parametrize(
    ("spec", "owners"),
    [
        ("classes:cat+dog,wolf", [0, 0, -1, -1, -1, 1]),
        ("classes:cat-great-tit,x-ray-wolf", [0, 0, 0, 1, 1, 1]),
        ("classes:great-tit,x-ray", [-1, -1, 0, 1, -1, -1]),
        ("classes:C++,cat-dog+wolf", [1, 1, -1, -1, 0, 1]),
        ("classes:0-1,wolf+3", [0, 0, -1, 1, -1, 1]),
    ],
)
def test_classes_may_be_named(spec, owners):
    assert class_owners(spec, 2, NAMED).tolist() == owners


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("classes:cat,dgo", r"'dgo' is neither a class .*; did you mean 'dog'\?"),
        ("classes:cat,DOG", r"'DOG' is neither a class .*; it differs from 'dog' only in case"),
        ("classes:cat,Wolf", r"'Wolf' is neither a class .*; it differs from 'wolf' only in case"),
        ('classes:cat,"dog "', r"is neither a class .*; it differs from 'dog' only in blanks"),
        ("classes:wolf-cat,dog", r"'wolf-cat' is neither a class"),
        ("classes:cat,cat-dog", r"class 'cat' is given to peers 0 and 1"),
    ],
)
def test_a_name_that_no_class_has_is_refused_with_the_nearest(spec, message):
    with pytest.raises(ConfigError, match=message):
        class_owners(spec, 2, NAMED)


AGES = ("0-1", "2-3", "4-5", "6-7")
SUMS = ("a", "a+b", "b", "other, unclear", 'the "odd"', "C++", "cat ", "d-e")


@pytest.mark.parametrize(
    ("spec", "classes", "owners"),
    [
        ('classes:"0-1"+"2-3","4-5"', AGES, [0, 0, 1, -1]),
        ('classes:"0-1"-"2-3","4-5"-"6-7"', AGES, [0, 0, 1, 1]),
        ("classes:0+1,2+3", AGES, [0, 0, 1, 1]),  # positions: no class is called 0
        ('classes:"other, unclear"+"a+b",a', SUMS, [1, 0, -1, 0, -1, -1, -1, -1]),
        ('classes:"the ""odd"""+C++,"cat "', SUMS, [-1, -1, -1, -1, 0, 0, 1, -1]),
        ("classes:a+C+++d-e,b", SUMS, [0, -1, 1, -1, -1, 0, -1, 0]),
        ("classes: a , b ", SUMS, [0, -1, 1, -1, -1, -1, -1, -1]),
        ("classes:cat ,0", SUMS, [1, -1, -1, -1, -1, -1, 0, -1]),
        ("classes:0, 1", AGES, [0, 1, -1, -1]),
        ("classes:0 - 1, 2 + 3", tuple("0123"), [0, 0, 1, 1]),
        ("classes:0,1", ("0.0", "1.0"), [0, 1]),
        ("classes:-1-0,1", ("-1", "0", "1"), [0, 0, 1]),
        ("classes:1.0-2.0,3", ("1.0", "2.0", "3.0"), [0, 0, 1]),  # no class has position 3
    ],
)
def test_names_that_look_like_ranges_sums_or_lists_are_written_in_quotes(spec, classes, owners):
    assert class_owners(spec, 2, classes).tolist() == owners


@pytest.mark.parametrize(
    ("spec", "classes", "text", "readings"),
    [
        ("classes:0-1,2-3", AGES, "0-1", '"0-1" or "0-1"-"2-3"'),
        ("classes:6-7+2-3,1", AGES, "2-3", '"2-3" or "4-5"-"6-7"'),
        ("classes:a+b,C++", SUMS, "a+b", '"a"+"b" or "a+b"'),
        ("classes:a-c,b", ("a", "a-c", "b", "c"), "a-c", '"a-c" or "a"-"c"'),
        ("classes:cat ,dog", ("cat", "cat ", "dog"), "cat ", '"cat" or "cat "'),
        ("classes:1,2", ("1.0", "2.0", "3.0"), "1", '"1.0" or "2.0"'),
        ("classes:1-2,3", ("01", "02", "03", "04"), "1-2", '"01"-"02" or "02"-"03"'),
        ("classes:2,3", ("0,5", "1,0", "1,5", "2,0"), "2", '"2,0" or "1,5"'),
        ("classes:0,1", ("-1", "0.0", "1"), "0", '"0.0" or "-1"'),
        ("classes:1,0", ("+1", "x"), "1", '"+1" or "x"'),
    ],
)
def test_a_text_that_may_mean_different_classes_is_refused_with_what_to_write(spec, classes, text, readings):
    if readings is None:
        class_owners(spec.replace(",2", "+2.0"), 1, classes)
        return
    with pytest.raises(ConfigError) as caught:
        class_owners(spec, 2, classes)
    assert f"{text!r} may mean the classes {readings}: write what you mean, with these quotes" in str(
        caught.value
    )
    # What the message says to write is read.
    for written in readings.split(" or "):
        class_owners(f"classes:{written}", 1, classes)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ('classes:"cat,dog', r"'\"cat,dog' cannot be read: quotes stand round a whole name"),
        ('classes:"cat"s,dog', r"cannot be read: quotes stand round a whole name"),
        ('classes:5" pipe,dog', r"a quote that is part of a name is written twice"),
        ('classes:"dgo",cat', r"'\"dgo\"' is neither a class .*; did you mean 'dog'\?"),
        ('classes:"0",cat', r"'\"0\"' is neither a class"),
        ('classes:"wolf"-"cat",dog', r"is neither a class"),
        ("classes:a, b,cat", r"3 groups of classes for 2 peers: .*a comma in it stands in quotes"),
    ],
)
def test_quotes_are_read_as_names_alone_or_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        class_owners(spec, 2, NAMED)


@given(
    st.lists(st.text('0123-+, ".ab', min_size=1, max_size=4), min_size=1, max_size=8, unique=True), st.data()
)
def test_what_auto_writes_gives_every_class_to_one_peer_in_even_ranges_whatever_the_names(names, data):
    n = data.draw(st.integers(1, len(names)))
    spec = resolve_partition("auto", "folder:/x", n, names)
    expected = [peer for peer, part in enumerate(np.array_split(names, n)) for _ in part]
    assert class_owners(spec, n, names).tolist() == expected


@pytest.mark.parametrize(
    ("classes", "spec"),
    [
        (AGES, 'classes:"0-1"-"2-3","4-5"-"6-7"'),
        (("1", "2", "3", "other, unclear"), 'classes:"1"-"2","3"-"other, unclear"'),
        (("1", "2", "3", "4"), "classes:1-2,3-4"),
        (("1", "2", "3-4", "5"), 'classes:"1"-"2","3-4"-"5"'),
        (("cat", "dog", "other, unclear", "wolf"), "classes:0-1,2-3"),
        (("1.0", "2.0", "3.0", "4.0"), "classes:1.0-2.0,3.0-4.0"),
    ],
)
def test_auto_says_who_holds_what_in_a_text_that_cannot_be_misread(classes, spec):
    assert resolve_partition("auto", "folder:/x", 2, classes) == spec


def test_a_name_in_another_unicode_form_is_said_to_differ_in_it():
    # 'é' of one character and of two look the same: that one is spelt nearly as the other says nothing.
    with pytest.raises(ConfigError, match=r"it differs from 'Caf\\xe9' only in Unicode form"):
        class_owners("classes:Cafe\u0301,Tea", 2, ("Caf\u00e9", "Tea"))


@pytest.mark.parametrize(
    ("spec", "n", "message"),
    [
        ("classes:0-1,2-3", 3, r"names 2 groups of classes for 3 peers"),
        ("classes:0,1,2", 2, r"names 3 groups of classes for 2 peers"),
        ("classes:0-1,x", 2, r"'x' is neither a class \(7, or its name\) nor a range \(7-9\)"),
        ("classes:0-1,", 2, r"'' is neither a class"),
        ("classes:0-1,2-", 2, r"'2-' is neither a class"),
        ("classes:0-1,-2", 2, r"'-2' is neither a class"),
        ("classes:0-1,2-3-4", 2, r"'2-3-4' is neither a class"),
        ("classes:0+3-2,1", 2, r"'3-2' is neither a class"),
        ("classes:0-1,5-6", 2, r"class 6 does not exist; classes are 0-5"),
        ("classes:0-2,2-5", 2, r"class 2 is given to peers 0 and 1"),
        ("classes:0+0,1", 2, r"class 0 is given to peers 0 and 0"),
        ("classes:", 1, r"is unknown; choose one of auto, classes:0-1,2-3,…, iid, dirichlet:ALPHA"),
        ("classes", 1, r"is unknown; choose one of auto"),
        ("shards", 2, r"is unknown; choose one of auto"),
        ("shards:0", 2, r"K, the classes of a peer, must be a whole number from 1 to 6"),
        ("shards:7", 2, r"K, the classes of a peer, must be a whole number from 1 to 6"),
        ("shards:two", 2, r"K, the classes of a peer, must be a whole number"),
        ("random", 2, r"partition = 'random' is unknown; choose one of auto"),
        ("dirichlet", 2, r"is unknown; choose one of auto"),
        ("dirichlet:0", 2, r"ALPHA must be a positive number, as dirichlet:0.5"),
        ("dirichlet:-1", 2, r"ALPHA must be a positive number"),
        ("dirichlet:nan", 2, r"ALPHA must be a positive number"),
        ("dirichlet:inf", 2, r"ALPHA must be a positive number"),
        ("dirichlet:half", 2, r"ALPHA must be a positive number"),
    ],
)
def test_a_partition_that_cannot_be_read_is_refused(spec, n, message):
    with pytest.raises(ConfigError, match=message):
        partition_images(spec, LABELS, n, NUMBERED[:6], seed=0)


def test_a_peer_left_without_an_image_is_named():
    with pytest.raises(DataError, match=r"leaves peer 1 without a training image"):
        partition_images("classes:0-4,5", LABELS[LABELS != 5], 2, NUMBERED[:6], seed=0)


@pytest.mark.parametrize("spec", ["iid", "dirichlet:0.5"])
def test_more_peers_than_images_are_refused(spec):
    with pytest.raises(DataError, match=r"5 training images cannot be dealt out to 6 peers"):
        partition_images(spec, LABELS[:5], 6, NUMBERED[:6], seed=0)


def test_a_dirichlet_partition_that_cannot_succeed_is_refused_not_tried_for_ever():
    with pytest.raises(DataError, match=r"could not deal 300 images out to 200 peers"):
        partition_images("dirichlet:0.01", LABELS, 200, NUMBERED[:6], seed=0)


@pytest.mark.parametrize(
    ("dataset", "classes", "ranges"),
    [
        ("oxford-iiit-pet", 37, [(0, 4), (5, 19), (20, 29), (30, 36)]),
        ("oxford-flowers102", 102, [(0, 19), (20, 39), (40, 79), (80, 101)]),
        ("cifar10", 10, [(0, 1), (2, 3), (4, 6), (7, 9)]),
        ("cifar100", 100, [(0, 9), (10, 19), (20, 74), (75, 99)]),
    ],
)
def test_auto_is_table_1_for_the_papers_datasets_with_four_peers(dataset, classes, ranges):
    labels = np.arange(classes).repeat(2)
    parts = partition_images(
        resolve_partition("auto", dataset, 4, NUMBERED[:classes]), labels, 4, NUMBERED[:classes], seed=0
    )
    assert held(parts, labels) == [list(range(first, last + 1)) for first, last in ranges]
    assert len(np.concatenate(parts)) == len(labels)


def test_table_1_does_not_fit_a_copy_with_fewer_classes_and_says_so():
    spec = resolve_partition("auto", "oxford-flowers102", 4, NUMBERED[:17])
    with pytest.raises(ConfigError, match=r"class 19 does not exist; classes are 0-16"):
        partition_images(spec, np.arange(17), 4, NUMBERED[:17], seed=0)


@pytest.mark.parametrize(("n", "k"), [(3, 1), (4, 2), (5, 6), (20, 3)])
def test_shards_give_every_peer_exactly_k_classes_and_no_image_to_two(n, k):
    parts = partition_images(f"shards:{k}", LABELS, n, NUMBERED[:6], seed=3)
    assert all(len(classes) == k for classes in held(parts, LABELS))
    assert [peer % 6 in classes for peer, classes in enumerate(held(parts, LABELS))] == [True] * n
    again = partition_images(f"shards:{k}", LABELS, n, NUMBERED[:6], seed=3)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))


def test_shards_that_need_more_images_of_a_class_than_there_are_are_refused():
    with pytest.raises(DataError, match=r"'shards:6' could not deal 12 images out to 8 peers: 8 of "):
        partition_images("shards:6", np.arange(12) % 6, 8, NUMBERED[:6], seed=0)


NAMES = tuple("abcdef")


def test_shots_are_that_many_images_of_each_class_drawn_by_seed():
    drawn = draw_shots(LABELS, 4, NAMES, seed=1)
    assert np.bincount(LABELS[drawn]).tolist() == [4] * 6
    assert (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, draw_shots(LABELS, 4, NAMES, seed=1))
    assert drawn.tolist() != draw_shots(LABELS, 4, NAMES, seed=2).tolist()


def test_fewer_shots_are_among_more_and_none_means_all():
    assert set(draw_shots(LABELS, 1, NAMES, seed=1)) < set(draw_shots(LABELS, 5, NAMES, seed=1))
    assert draw_shots(LABELS, 0, NAMES, seed=1).tolist() == list(range(300))


def test_more_shots_than_a_class_has_use_all_it_has_and_name_it(caplog):
    labels = np.repeat([0, 1, 2], [5, 2, 3])
    with caplog.at_level(logging.WARNING):
        drawn = draw_shots(labels, 3, ("cat", "dog", "owl"), seed=0)
    assert np.bincount(labels[drawn]).tolist() == [3, 2, 3]
    assert caplog.messages == [
        "shots = 3 is more than 1 of 3 classes have; all of their training images are used: 'dog' has 2"
    ]


def test_peers_share_out_the_shots_and_nothing_else():
    holdings = Holdings(LearningConfig(shots=5, partition="iid", seed=2), n=4)
    labels = holdings.dataset.train.labels
    dealt = np.sort(np.concatenate(holdings.partition))
    np.testing.assert_array_equal(dealt, draw_shots(labels, 5, holdings.dataset.classes, seed=2))
    pooled = Holdings(LearningConfig(shots=5, partition="iid", seed=2), n=4, pooled="examples")
    np.testing.assert_array_equal(np.sort(pooled.partition[0]), dealt)


def test_an_own_partition_plugs_in_by_module_and_by_file(tmp_path, monkeypatch):
    (tmp_path / "own_partition.py").write_text(
        "import numpy as np\n\n"
        "def by_turns(labels, n, seed):\n"
        "    order = np.random.default_rng(seed).permutation(len(labels))\n"
        "    return [order[i::n] for i in range(n)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    order = np.random.default_rng(8).permutation(300)
    for reference in ("own_partition:by_turns", f"{tmp_path}/own_partition.py:by_turns"):
        assert resolve_partition(reference, "digits", 4, NUMBERED[:10]) == reference
        parts = partition_images(reference, LABELS, 3, NUMBERED[:6], seed=8)
        for i, part in enumerate(parts):
            np.testing.assert_array_equal(part, np.sort(order[i::3]))
    del sys.modules["own_partition"]


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ([[0], [1]], ConfigError, r"returned list, not a list of 3 arrays"),
        (None, ConfigError, r"returned NoneType, not a list of 3 arrays"),
        ([[0, 1], [2], [1]], DataError, r"gives an image to two peers, or to one twice"),
        ([[0, 0], [2], [1]], DataError, r"gives an image to two peers, or to one twice"),
        ([[0], [], [1]], DataError, r"leaves peer 1 without a training image"),
        ([[0], [1], [300]], DataError, r"gives peer 2 a position outside 0..299"),
        ([[0], [-1], [2]], DataError, r"gives peer 1 a position outside 0..299"),
        ([[0], [1.5], [2]], ConfigError, r"gives peer 1 something else than whole numbers"),
        ([[0], np.arange(300) == 4, [2]], ConfigError, r"gives peer 1 something else than whole numbers"),
        ([[0], [[1, 2], [3, 4]], [5]], ConfigError, r"gives peer 1 something else than whole numbers"),
    ],
    ids=range(10),
)
def test_what_an_own_partition_may_not_return_is_refused(returned, error, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_wrong", type(sys)("own_wrong"))
    sys.modules["own_wrong"].deal = lambda labels, n, seed: returned
    with pytest.raises(error, match=message):
        partition_images("own_wrong:deal", LABELS, 3, NUMBERED[:6], seed=0)


def flower_deals(name, labels, n, seed, **options):
    """Deal with flwr-datasets, which takes a table."""
    from datasets import Dataset as Table
    from flwr_datasets import partitioner as partitioners

    table = Table.from_dict({"label": labels.tolist(), "position": list(range(len(labels)))})
    if name == "IidPartitioner":
        table = table.shuffle(seed=seed)  # it deals contiguously
    else:
        options |= {"partition_by": "label", "seed": seed}
    partitioner = getattr(partitioners, name)(num_partitions=n, **options)
    partitioner.dataset = table
    return [np.sort(partitioner.load_partition(i)["position"]) for i in range(n)]


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("n", [3, 8])
@pytest.mark.filterwarnings("ignore:The specified min_partition_size", "ignore:Classes")
def test_images_are_dealt_out_as_flwr_datasets_partitioners_do(n, seed):
    labels = np.random.default_rng(seed).choice([0, 1, 2, 4, 5], size=400)
    first = {"class_assignment_mode": "first-deterministic"}
    theirs = {
        "iid": flower_deals("IidPartitioner", labels, n, seed),
        "dirichlet:0.3": flower_deals(
            "DirichletPartitioner", labels, n, seed, alpha=0.3, min_partition_size=min(10, 400 // (8 * n))
        ),
        "shards:2": flower_deals(
            "PathologicalPartitioner", labels, n, seed, num_classes_per_partition=2, **first
        ),
    }
    for spec, expected in theirs.items():
        ours = partition_images(spec, labels, n, NUMBERED[:6], seed)
        for one, two in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(one, two)


def test_one_class_by_its_name_is_no_module(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
    config = LearningConfig(dataset=f"folder:{tmp_path}", partition="classes:a")
    require_here(config, 1)

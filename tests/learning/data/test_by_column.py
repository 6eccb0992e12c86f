"""``partition = by:COLUMN``: each value of a source's column is one peer's."""

from __future__ import annotations

import json

import numpy as np
import pytest

from p2pft_flower.config import LearningConfig
from p2pft_flower.errors import ConfigError, DataError
from p2pft_flower.learning.data.by_column import by_names, check_by, deal_by, names_by, resolve_by
from p2pft_flower.learning.data.holdings import Holdings
from p2pft_flower.learning.data.partitions import check_partition, resolve_partition
from p2pft_flower.report.results import read_results
from tests.cli.test_commands import invoke
from tests.flower.engine import run_app

from .test_tables import ROWS, paint, write


def columns(**values):
    return {name: np.array(column, dtype=object) for name, column in values.items()}


def test_values_belong_to_the_peers_in_natural_order():
    found = resolve_by("by:center", 4, columns(center=["10", "2", "1", "2", "0"]))
    assert found == "by:center=0,1,2,10"
    dealt = deal_by(found, columns(center=["10", "2", "1", "2", "0"]))
    assert [positions.tolist() for positions in dealt] == [[4], [2], [1, 3], [0]]
    assert resolve_by("by:Center", 2, columns(center=["b", "a"])) == "by:center=a,b"


def test_values_can_be_given_in_the_peers_order_in_quotes_if_they_have_commas():
    there = columns(site=["Ward 3, north", 'the "old" one', "x"])
    spec = 'by:site=x,"Ward 3, north","the ""old"" one"'
    check_by(spec, 3)
    assert resolve_by(spec, 3, there) == spec
    assert resolve_by(spec, 3, there) == resolve_by(resolve_by(spec, 3, there), 3, there)
    assert [p.tolist() for p in deal_by(spec, there)] == [[2], [0], [1]]


def test_a_value_with_a_line_break_in_it_is_one_value():
    there = columns(note=["first\nsecond", "x", "first\r\nsecond"])
    spec = resolve_by("by:note", 3, there)
    assert [p.tolist() for p in deal_by(spec, there)] == [[0], [2], [1]]
    with pytest.raises(ConfigError, match="a value with a comma or a line break stands in quotes"):
        resolve_by("by:note=x,first\nsecond,y", 3, there)


def test_values_that_only_look_the_same_are_told(caplog):
    there = columns(center=["Orl\u00e9ans", "Orle\u0301ans", "north"])
    with pytest.raises(DataError, match=r"3 values for 2 peers: .* differ only in Unicode form; give"):
        resolve_by("by:center", 2, there)
    resolve_by("by:center", 3, there, warn=False)
    resolve_by("by:center=north,Orl\u00e9ans,Orle\u0301ans", 3, there)  # whoever writes both knows both
    assert not caplog.text
    resolve_by("by:center", 3, there)
    assert "differ only in Unicode form" in caplog.text


def test_auto_deals_by_the_column_peer_or_site_if_there_is_one():
    both = columns(site=["a", "b"], peer=["1", "0"])
    assert resolve_partition("auto", "table:x", 2, "ab", both) == "by:peer=0,1"
    assert resolve_partition("auto", "table:x", 2, "ab", columns(site=["a", "b"])) == "by:site=a,b"
    assert resolve_partition("auto", "table:x", 2, "ab", columns(center=["a", "b"])).startswith("classes:")
    assert resolve_partition("auto", "table:/{peer}", 2, "ab", both) == "own"


FAULTS = {
    "by:center": (
        DataError,
        r"the column has 3 values for 2 peers: a \(2 images\), b \(1 images\), c \(1 images\)",
    ),
    "by:centre": (ConfigError, "no column 'centre'; it has center, holes, peer; did you mean 'center'"),
    "by:holes": (DataError, r"no value for some training images: \(empty\) \(1 images\), x \(3 images\)"),
    "by:peer": (
        DataError,
        r"the peers are 0 to 1, but the column has 1 \(2 images\), 2 \(2 images\); number them",
    ),
    "by:peer=1,3": (DataError, r"the column has other values: 1 \(2 images\), 2 \(2 images\)"),
}


@pytest.mark.parametrize("spec", FAULTS)
def test_a_column_that_does_not_fit_the_peers_is_refused_with_its_values_and_counts(spec):
    error, message = FAULTS[spec]
    there = columns(center=list("abac"), holes=["x", "", "x", "x"], peer=["1", "2", "1", "2"])
    with pytest.raises(error, match=message):
        resolve_by(spec, 2, there)
    assert resolve_by("by:peer=2,1", 2, there) == "by:peer=2,1"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("by:", "name a column, as by:center"),
        ("by:=a,b", "name a column, as by:center"),
        ("by:center=a,b,c", "3 values for 2 peers"),
        ("by:center=a,a", "'a' is given twice"),
    ],
)
def test_what_is_wrong_whatever_the_data_is_refused_before_it_is_read(spec, message):
    with pytest.raises(ConfigError, match=message):
        check_partition(spec, 2)


def test_a_dataset_without_columns_has_no_partition_by_one():
    with pytest.raises(ConfigError, match="no column 'center'; it has none: a table has"):
        _ = Holdings(LearningConfig(partition="by:center"), n=4).shares


def test_values_that_are_exactly_the_peers_names_belong_to_the_peers_of_these_names():
    found = "by:site=east,north,south"
    for spec in ("auto", "by:site"):
        assert by_names(spec, found, ["north", "south", "east"]) == "by:site=north,south,east"
    commas = by_names("by:site", 'by:site="a, b",c', ["c", "a, b"])
    assert commas == 'by:site=c,"a, b"'
    given = "by:site=north,south,east"
    assert by_names(given, given, ["east", "south", "north"]) == given  # the user's own word
    for other in (["0", "1", "2"], ["east", "north", "west"], ["east", "north"], ["east", "north", "south"]):
        assert by_names("auto", found, other) == found
    assert by_names("classes:0,1", "classes:0,1", ["0,1"]) == "classes:0,1"


def test_names_of_sites_that_are_not_there_are_not_guessed():
    found = "by:site=east,north,south"
    with pytest.raises(ConfigError, match=r"as 'north' of peer 0, but the sites of peers 2 are not there"):
        by_names("by:site", found, ["north", "east", "2"], [2])
    assert by_names("by:site", found, ["east", "north", "2"], [2]) == found  # by order as by name
    assert by_names("by:site", found, ["a", "b", "2"], [2]) == found


@pytest.fixture
def labels(tmp_path):
    """A table of two classes; of each one image is of the site east, one of north and two of south."""
    rows = [row.replace("north", "east") if "-2.png" in row else row for row in ROWS]
    paint(tmp_path, [row.split(",")[0] for row in rows])
    return write(tmp_path, rows, "image,label,split,site")


def test_shots_and_unreadable_images_are_drawn_before_the_column_deals_out(labels):
    settings = {"dataset": f"table:{labels}", "partition": "by:site"}
    assert [len(share) for share in Holdings(LearningConfig(**settings), n=3).shares] == [2, 2, 4]
    (labels.parent / "images" / "cat-1.png").write_bytes(b"broken")
    skipped = Holdings(LearningConfig(**settings, bad_images="skip"), n=3)
    assert [len(share) for share in skipped.shares] == [2, 2, 3]
    with pytest.raises(DataError, match=r"partition = 'by:site=east,north,south' leaves peer . without"):
        _ = Holdings(LearningConfig(**settings, shots=1), n=3).shares


def test_runs_tell_whose_value_is_whose_and_match_the_graphs_names(labels, tmp_path, capsys):
    graph = tmp_path / "wards.yaml"
    names = "{name: south}, {name: east}, {name: north}"
    edges = "[[south, east], [east, north], [north, south]]"
    graph.write_text(f"peers: [{names}]\nedges: {edges}\n")
    settings = {"dataset": f"table:{labels}", "topology": str(graph), "iterations": 1, "batch_size": 2}
    run_app(tmp_path / "r", **settings)
    results = read_results(tmp_path / "r")
    assert results["partition"] == "by:site=south,east,north"
    assert [(peer["name"], peer["images"]) for peer in results["peers"]] == [
        *(("south", 4), ("east", 2), ("north", 2)),
    ]
    told = capsys.readouterr().out
    assert "partition by:site=south,east,north" in told
    assert (
        "partition = auto: the values are the peers' names, so each peer gets its own: by:site=south" in told
    )
    run_app(tmp_path / "o", **settings, partition="by:site=east,north,south")
    assert [peer["images"] for peer in read_results(tmp_path / "o")["peers"]] == [2, 2, 4]
    shown = invoke("data", "show", f"dataset=table:{labels}", f"topology={graph}", "--json")
    assert json.loads(shown.stdout)["partition"] == "by:site=south,east,north"
    assert [peer["total"] for peer in json.loads(shown.stdout)["peers"]] == [4, 2, 2]
    wrong = invoke("run", f"dataset=table:{labels}", "partition=by:", f"topology={graph}")
    assert wrong.exit_code == 2
    assert "name a column" in wrong.stderr


@pytest.mark.parametrize("partition", ["by:Site", "auto"])
def test_a_value_of_which_validation_holds_out_all_images_is_told(partition, tmp_path):
    rows = [f"images/{label}-{k}.png,{label},train,north" for label in ("cat", "dog") for k in range(3)]
    rows += ["images/cat-9.png,cat,train,south", "images/dog-9.png,dog,train,lab"]
    paint(tmp_path, [row.split(",")[0] for row in rows])
    dataset = f"table:{write(tmp_path, rows, 'image,label,split,site')}"
    wrong = 0
    for seed in range(12):
        config = LearningConfig(dataset=dataset, partition=partition, validation=0.25, seed=seed)
        holdings = Holdings(config, 3)
        held = {str(value) for value in holdings.dataset.test.columns["site"]} - {"north"}
        if not held:
            assert [len(share) for share in holdings.shares] == [1, 4, 1]
            continue
        wrong += 1
        match = (
            rf"validation = 0.25 holds out all images of some values of column 'site': {min(held)} \(1 ima"
        )
        with pytest.raises(DataError, match=match):
            holdings.shares  # noqa: B018
    assert 0 < wrong < 12


def test_auto_tells_of_a_column_of_centres_that_it_deals_across_and_of_the_setting_that_uses_it(caplog):
    there = columns(center=["north", "south", "north"], label=["a", "b", "c"])
    assert resolve_partition("auto", "table:x", 2, "abc", there) == "classes:0-1,2-2"
    assert "auto means classes:0-1,2-2, whatever column 'center' says: north (2 images), south" in caplog.text
    assert "with partition = by:center each peer has the images of one value, in a graph of 2" in caplog.text
    caplog.clear()
    resolve_partition("auto", "table:x", 2, "abc", columns(center=["north", "north"]))
    resolve_partition("auto", "table:x", 2, "abc", columns(site=["a", "b"], center=["n", "s"]))
    resolve_partition("iid", "table:x", 2, "abc", there)
    resolve_partition("by:center", "table:x", 2, "abc", there)
    assert not caplog.text


def test_a_word_for_a_missing_value_is_no_value_of_a_column_unless_it_is_given():
    there = columns(site=["EU", "NA", "NA"])
    with pytest.raises(DataError, match=r"no value for some training images: .*, or, if 'NA' is one, give"):
        resolve_by("by:site", 2, there)
    assert resolve_by("by:site=NA,EU", 2, there) == "by:site=NA,EU"
    with pytest.raises(DataError, match="no value for some training images"):
        resolve_by("by:site=,EU", 2, columns(site=["EU", ""]))


def test_peers_are_called_by_the_values_that_they_hold():
    assert names_by('by:center="Ward 3, north",south') == {0: "Ward 3, north", 1: "south"}
    assert names_by("by:center=1,2") == {0: "center 1", 1: "center 2"}
    assert names_by("by:peer=0,1") == {}
    assert names_by("classes:0-1,2") == {}
    assert names_by("by:note=" + "x" * 65 + ",y") == {}

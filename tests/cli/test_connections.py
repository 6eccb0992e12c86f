"""A connection that Flower does not know is refused before anything is started."""

from __future__ import annotations

import pytest

from p2pft_flower.cli import app
from p2pft_flower.cli.connections import check_connection
from p2pft_flower.errors import ConfigError
from tests.commands import CliRunner


@pytest.mark.parametrize(
    "words", [["run"], ["preflight"], ["compare", "p2pft,dgd"]], ids=["run", "preflight", "compare"]
)
def test_an_unknown_connection_exits_2_with_those_there_are_and_their_file(words, connections, tmp_path):
    out = ["--out", str(tmp_path / "table")] if words[0] == "compare" else []
    done = CliRunner().invoke(app, [*words, *out, "--connection", "nowhere"])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"error: unknown connection 'nowhere': {connections} has far, rehearsal; choose one, or add "
        "[superlink.nowhere] there\n"
    )


@pytest.mark.parametrize(
    ("name", "remedy"), [("fahr", "did you mean 'far'"), ("default", "choose one"), ("", "choose one")]
)
def test_a_name_that_is_no_table_of_the_file_is_no_connection(name, remedy, connections):
    with pytest.raises(ConfigError, match=remedy):
        check_connection(name)


def test_a_missing_rehearsal_says_what_starts_it(connections):
    connections.write_text('[superlink.far]\naddress = "192.0.2.7:8000"\n')
    with pytest.raises(ConfigError, match=r"has far; 'p2pft up' starts"):
        check_connection("rehearsal")
    connections.write_text("")
    with pytest.raises(ConfigError, match=r"has none; 'p2pft up' starts"):
        check_connection("rehearsal")
    check = CliRunner().invoke(app, ["preflight"])
    assert (check.exit_code, check.stdout) == (2, "")


def test_flowers_own_connections_are_known_where_it_has_no_file_yet(connections):
    connections.unlink()
    check_connection("local")
    assert "[superlink.local]" in connections.read_text()

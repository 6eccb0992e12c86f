"""Lives of a peer: each start is a later one, whatever the clock says."""

from __future__ import annotations

from itertools import pairwise

import pytest

from p2pft_flower.errors import DataError
from p2pft_flower.keeping.lives import next_incarnation


def test_each_start_is_a_later_life_and_leaves_room_for_those_within_it(tmp_path):
    lives = [next_incarnation(tmp_path, 3) for _ in range(3)]
    assert lives[0] > 0
    assert all(later - life > 10**9 for life, later in pairwise(lives))
    assert next_incarnation(tmp_path, 2) == lives[0]
    left = sorted(path.name for path in (tmp_path / "peers").iterdir())
    assert left == ["peer-2.starts", "peer-3.starts"]


@pytest.mark.parametrize("content", ["", "many", "-1", "99999999999999", "1\n2"])
def test_a_count_that_is_none_is_named_with_what_to_do(content, tmp_path):
    path = tmp_path / "peers" / "peer-0.starts"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(DataError, match=r"peer-0\.starts: .*write a number there"):
        next_incarnation(tmp_path, 0)


def test_a_count_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "peers").write_text("")
    with pytest.raises(DataError, match=r"peer-0\.starts: how often the peer was started cannot be"):
        next_incarnation(tmp_path, 0)

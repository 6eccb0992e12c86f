"""How errors and messages name peers."""

from __future__ import annotations

from p2pft_flower.errors import listed


def test_few_peers_are_listed_and_of_many_the_first_and_the_last_with_their_number():
    assert listed((2, 5)) == "[2, 5]"
    assert listed(range(16)) == str(list(range(16)))
    assert listed(range(512, 1024)) == "[512, 513, 514, …, 1023] (512 in all)"

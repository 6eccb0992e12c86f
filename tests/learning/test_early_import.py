"""Imports of torch and timm are not held up by Python's garbage collector, which goes on afterwards."""

from __future__ import annotations

import contextlib
import gc

import pytest

from p2pft_flower.learning.early_import import without_collecting


@pytest.mark.parametrize("before", [True, False])
def test_the_collector_rests_in_the_block_and_is_as_it_was_afterwards(before):
    was = gc.isenabled()
    try:
        (gc.enable if before else gc.disable)()
        with contextlib.suppress(ImportError), without_collecting():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() is before
    finally:
        (gc.enable if was else gc.disable)()

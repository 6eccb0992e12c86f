"""The bytes of a payload, and their hash."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

__all__ = ["Body"]


class Body:
    """The bytes of a payload, which nobody changes while it is used.

    Parameters
    ----------
    data : bytes or memoryview
        The bytes; a view of the segment if they lie in one.
    hash_ : int, optional
        The bytes' xxh3_64, if it is known already.
    offset : int, optional
        The place, in bytes, at which they begin in this host's segment; default None: they lie in none.

    Attributes
    ----------
    data, offset
        The parameters of these names.
    finite : bool
        Whether the bytes are known to be numbers of the terms' dtype, all finite.
    vector : numpy.ndarray or None
        The bytes as the mailbox decoded and checked them; None before that. Several payloads may have one
        body.
    """

    __slots__ = ("_hash", "data", "finite", "offset", "vector")

    def __init__(self, data: bytes | memoryview, hash_: int | None = None, offset: int | None = None) -> None:
        self.data, self._hash, self.offset = data, hash_, offset
        self.finite = False
        self.vector: npt.NDArray[np.floating] | None = None

    def __len__(self) -> int:
        return len(self.data)

    @property
    def hash(self) -> int:
        """The bytes' xxh3_64."""
        if self._hash is None:
            self._hash = xxhash.xxh3_64_intdigest(self.data)
        return self._hash

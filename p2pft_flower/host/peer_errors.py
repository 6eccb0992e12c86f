"""Errors of the code of one peer, by the peer's name: of its data, its gradients, its scores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from p2pft_flower.errors import Cause, P2PFTError

__all__ = ["PeerFailedError", "naming"]


class PeerFailedError(Exception):
    """The code of a peer of this host raised; the text names peer, iteration, place and the original error.

    This is no subclass of :class:`P2PFTError`, as it stands for any error of the peer's code.
    """

    cause = Cause.OWN

    def __init__(self, peer: int, iteration: int, what: str, cause: BaseException) -> None:
        self.peer, self.iteration = peer, iteration
        super().__init__(f"peer {peer}, iteration {iteration}: {what}: {type(cause).__name__}: {cause}")


@contextlib.contextmanager
def naming(peer: int, iteration: int, what: str) -> Iterator[None]:
    """Replace an error in a ``with`` block, unless it is a P2PFTError, by a PeerFailedError for ``peer``."""
    try:
        yield
    except (P2PFTError, PeerFailedError):
        raise
    except Exception as error:
        raise PeerFailedError(peer, iteration, what, error) from error

"""One of two peers that beat: says whom it lost, and when that one is back.

Usage: python -m tests.namespaces.heart PEER
"""

from __future__ import annotations

import json
import sys

from p2pft_flower.transport import PeerLostError
from tests.namespaces.network import Network
from tests.transport.beating import Beating
from tests.transport.wire import PATIENCE


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def main(peer: int) -> None:
    other = 1 - peer
    addresses = {i: f"{Network.address(i)}:9000" for i in range(2)}
    with Beating(peer, [(0, 1), (1, 0)], addresses, silence=2.0, insecure=True) as own:
        own.beats.start()
        own.wait_until(lambda g: g.sender == other)
        say(hears=other)
        try:
            own.mailbox.take(peer, other, 0, 0, PATIENCE, own.beats.absence)
        except PeerLostError as lost:
            own.heard.clear()
            say(lost=lost.lost, how=lost.how.value, error=str(lost))
        own.wait_until(lambda g: g.sender == other)
        say(back=other, lost=own.beats.absence(other) is not None)
        own.wait_until(lambda g: g.pulse.iteration == 1)  # never: until it is killed


if __name__ == "__main__":
    main(int(sys.argv[1]))

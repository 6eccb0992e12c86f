"""A member of the federation that is no neighbour: says hello and stop in a neighbour's name.

Usage: python -m tests.namespaces.stranger CERTIFICATES HOST:PORT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpc

from p2pft_flower.transport.endpoint import EXCHANGE
from p2pft_flower.transport.trust.certificates import target_name
from p2pft_flower.transport.trust.tls import Credentials
from p2pft_flower.transport.wire import p2pft_pb2 as pb


def main(folder: str, address: str) -> None:
    own = Credentials.load(Path(folder))
    said = {}
    options = [("grpc.ssl_target_name_override", target_name(own.federation, 0))]
    with grpc.secure_channel(address, own.channel(), options) as channel:
        for method, message in (
            ("Hello", pb.Hello(run="test", sender=3, receiver=0)),
            ("Stop", pb.Stop(run="test", sender=3, origin=3, reason="because I say so", cause="STOPPED")),
        ):
            call = channel.unary_unary(f"/{EXCHANGE}/{method}", None, None)
            answer = call(message.SerializeToString(), timeout=60, wait_for_ready=True)
            said[method] = pb.Status.Name(pb.Reply.FromString(answer).status)
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])

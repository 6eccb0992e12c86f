#!/usr/bin/env bash
# A grpc.aio server ends calls with CANCELLED if more than a thousand wait to be taken, though no limit was set.
#
# Seen with grpcio 1.85.3: 2,000 calls at once, all of them from one client, to a server whose loop is busy for a
# moment. Nobody cancels anything, `maximum_concurrent_rpcs` is not given (then RESOURCE_EXHAUSTED would be said),
# and the deadline is far away, yet some calls fail with CANCELLED, "CANCELLED", at random. The core keeps calls
# that no handler has asked for yet in a queue, and beyond 1,000 of them it drops some, beyond 3,000 all. The
# Python documents do not name the two channel arguments that set these numbers, and with these no call fails:
# grpc.server.max_pending_requests and grpc.server.max_pending_requests_hard_limit.
#
# Prints the codes of both servers; exits with 1 if this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check grpcio==1.85.3
cat >"$work/calls.py" <<'PY'
import asyncio
import collections
import time

import grpc
import grpc.aio

CALLS = 2000


async def answer(request, context):
    return request


async def codes(options):
    server = grpc.aio.server(options=options)
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"m": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/s/m")
        await call(b"first")
        calls = [asyncio.ensure_future(call(b"x", timeout=120)) for _ in range(CALLS)]
        await asyncio.sleep(0)  # all are sent
        time.sleep(1)  # the loop that takes them is busy
        found = await asyncio.gather(*calls, return_exceptions=True)
    await server.stop(0)
    return collections.Counter(f.code().name if isinstance(f, grpc.aio.AioRpcError) else "OK" for f in found)


plain = asyncio.run(codes([]))
roomy = asyncio.run(
    codes([("grpc.server.max_pending_requests", CALLS), ("grpc.server.max_pending_requests_hard_limit", CALLS)])
)
print(f"without options {dict(plain)}, with room for all {dict(roomy)}")
raise SystemExit(not (plain["CANCELLED"] > 0 and plain["OK"] > 0 and roomy == {"OK": CALLS}))
PY
"$work/venv/bin/python" "$work/calls.py"

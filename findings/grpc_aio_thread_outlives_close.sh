#!/usr/bin/env bash
# grpcio 1.85.3: grpc.aio has one thread that polls for its event loops. It does not end when the last server is stopped,
# the last channel closed and the loop closed: it ends when the last of these objects is garbage-collected. A service that
# keeps a closed channel in a field, or in a traceback, keeps the thread; a check "no thread is left after close" fails.
#
# Expected: after `await channel.close()` and `await server.stop(None)` nothing of grpc.aio runs. Seen: the thread runs as
# long as server or channel are referenced, and ends once they are not. Exit 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.3
"$work/venv/bin/python" - <<'PY'
import asyncio
import gc
import sys
import threading

import grpc
import grpc.aio


def pollers():
    return [thread for thread in threading.enumerate() if "_poll_wrapper" in thread.name]


async def serve_and_close():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    await channel.channel_ready()
    await channel.close()
    await server.stop(None)
    return server, channel


loop = asyncio.new_event_loop()
closed = loop.run_until_complete(serve_and_close())
loop.close()
before = pollers()
del closed
gc.collect()
for thread in before:
    thread.join(30)
print("grpcio", grpc.__version__)
print(f"pollers while closed objects are referenced: {len(before)}, afterwards: {len(pollers())}")
if (len(before), len(pollers())) != (1, 0):
    sys.exit("this has changed")
PY

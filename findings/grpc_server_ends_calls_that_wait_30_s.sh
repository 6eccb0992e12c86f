#!/usr/bin/env bash
# A grpc.aio server ends calls with CANCELLED that its busy loop has not taken within 30 s, whatever their deadline.
#
# Seen with grpcio 1.85.3: 20 calls with a deadline of 120 s, to a server whose loop computes for 33 s (as one does
# whose process is stopped, or which shares the interpreter with long computations). Few calls wait, so it is not the
# length of gRPC's queue; nobody cancels anything. Most calls end with CANCELLED, "CANCELLED", once the loop is free,
# as if their callers had given up; one would have expected an answer, or DEADLINE_EXCEEDED after 120 s. The Python
# documents do not name the channel argument that sets the 30 s, grpc.server_max_unrequested_time_in_server; with 600
# all calls are answered.
#
# Prints the codes of both servers; exits with 1 if this is no longer so. Takes a bit more than a minute.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check grpcio==1.85.3
cat >"$work/calls.py" <<'PY'
import asyncio
import collections
import threading
import time

import grpc
import grpc.aio

CALLS, BUSY, DEADLINE = 20, 33, 120


def codes(options):
    begun, started = threading.Event(), threading.Event()
    found = {}

    async def answer(request, context):
        if not begun.is_set():
            begun.set()
            time.sleep(BUSY)  # the loop that takes calls is busy
        return request

    async def serve():
        server = grpc.aio.server(options=options)
        handler = grpc.unary_unary_rpc_method_handler(answer)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"m": handler}),))
        found["port"] = server.add_insecure_port("127.0.0.1:0")
        found["end"], found["loop"] = asyncio.Event(), asyncio.get_running_loop()
        await server.start()
        started.set()
        await found["end"].wait()
        await server.stop(0)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(DEADLINE)
    with grpc.insecure_channel(f"127.0.0.1:{found['port']}") as channel:
        call = channel.unary_unary("/s/m")
        calls = [call.future(b"x", timeout=DEADLINE)]
        assert begun.wait(DEADLINE)
        calls += [call.future(b"x", timeout=DEADLINE) for _ in range(CALLS - 1)]
        ended = collections.Counter(one.code().name for one in calls)
    found["loop"].call_soon_threadsafe(found["end"].set)
    thread.join()
    return ended


plain = codes([])
patient = codes([("grpc.server_max_unrequested_time_in_server", 600)])
print(f"without options {dict(plain)}, with 600 s {dict(patient)}")
raise SystemExit(not (plain["CANCELLED"] > 0 and plain["OK"] > 0 and patient == {"OK": CALLS}))
PY
"$work/venv/bin/python" "$work/calls.py"

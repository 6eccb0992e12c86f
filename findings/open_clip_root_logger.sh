#!/usr/bin/env bash
# open_clip_torch 3.3.0: a library logs through a logger of its own, and leaves handlers to the program. open_clip's factory
# calls logging.info(…), the module's function, which gives the root logger a handler to standard error if it has none. In
# a program whose own logger has a handler (and propagates, as is the default), every later message of WARNING and above
# is printed twice from the first get_tokenizer() or create_model() on; the second one without the program's format.
#
# Expected: after get_tokenizer the root logger has no handler, and a warning is printed once.
# Seen: one StreamHandler on the root logger; the warning is printed twice.
# What helps: give the root logger a logging.NullHandler() while open_clip is called. Exit 0 while that is so, 1 when it
# has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check open_clip_torch==3.3.0 timm==1.0.31 torch==2.14.1
"$work/venv/bin/python" - <<'PY'
import contextlib
import io
import logging
import sys

errors = io.StringIO()
with contextlib.redirect_stderr(errors):
    import open_clip

    own = logging.getLogger("program")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("program: %(message)s"))
    own.addHandler(handler)
    imported = list(logging.getLogger().handlers)
    open_clip.get_tokenizer("ViT-B-32")
    handlers = list(logging.getLogger().handlers)
    own.warning("one warning")

print("open_clip", open_clip.__version__)
print("handlers of the root logger after import:", imported)
print("and after get_tokenizer:", [type(handler).__name__ for handler in handlers])
lines = [line for line in errors.getvalue().splitlines() if "one warning" in line]
print("one warning gives these lines:", lines)
if imported or len(handlers) != 1 or lines != ["program: one warning", "WARNING:program:one warning"]:
    sys.exit("this has changed")
PY

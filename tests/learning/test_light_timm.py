"""A process that trains starts without torch's compiler and scikit-learn; who wants to compile still can."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

TRAINS = """
import json, sys

from p2pft_flower.config import LearningConfig
from p2pft_flower.learning.workload import Workload

work = Workload(LearningConfig(), 4)
work.objectives([0])[0].gradient(work.theta0)
heavy = ("torch._dynamo", "sympy", "sklearn", "pandas", "timm")
said = {"imported": [name for name in heavy if name in sys.modules]}

import timm, torch, torchvision
from p2pft_flower.learning.light_timm import _disable

def twice(x):
    compiling.append(torch.compiler.is_compiling())
    return 2 * x

kept = timm.models.naflexvit.NaFlexVit._generate_rope_naflex
said["kept by timm"] = kept.__code__ is _disable(twice).__code__
compiling, twice = [], _disable(twice)
said["not compiled"] = twice(2)

asked = torchvision.ops.roi_align.__globals__["is_compile_supported"]
said["compiles"] = [asked("cpu"), asked("meta")]
from torch._dynamo.utils import is_compile_supported
said["same"] = [is_compile_supported("cpu"), is_compile_supported("meta")]
said["real"] = torch._dynamo is sys.modules["torch._dynamo"] and hasattr(torch._dynamo, "__file__")

graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

@torch.compile(backend=backend)
def compiled(x):
    return twice(x + 1) + 1

said["compiled"] = compiled(torch.ones(1)).item()
said["compiling"], said["graphs"] = compiling, len(graphs)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said():
    command = [sys.executable, "-c", TRAINS]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_process_trains_without_the_compiler_scikit_learn_or_what_they_import(said):
    assert said["imported"] == ["timm"]


def test_whoever_compiles_does_so_and_functions_that_timm_keeps_from_it_are_not_compiled(said):
    assert said["kept by timm"]
    assert (said["not compiled"], said["compiled"]) == (4, 5)
    assert said["compiling"] == [False, False]
    assert said["graphs"] == 2  # before and after the function that is not compiled
    assert said["real"]


def test_torchvision_is_told_by_the_compiler_what_it_supports(said):
    assert said["compiles"] == said["same"]

"""p2pft that computes while its payload travels."""

from __future__ import annotations

import numpy as np
import pytest

from p2pft_flower.algorithms import simulate
from p2pft_flower.errors import ConfigError
from p2pft_flower.topology import Graph

from .conftest import LOPSIDED, quadratics
from .test_methods import random_directed_graph
from .test_schedules import lopsided

GRAPHS = [Graph.from_weights(LOPSIDED), *(random_directed_graph(2 + seed % 5, seed) for seed in range(5))]


def run_of(graph, **changes):
    problem = quadratics(graph.n, seed=3)
    settings = {"alpha": 0.02, "iterations": 1700} | changes
    run = simulate("p2pft", graph, problem.gradients, np.zeros(5), pipelined=True, **settings)
    return run, problem


def dense(graph, gradients, alpha, iterations):
    """θ⁺ = A θ + (φ − θ), τ⁺ = B τ + (g − g_old), with whole matrices; one step."""
    theta = np.zeros((graph.n, 5))
    old = np.stack([g(t) for g, t in zip(gradients, theta, strict=True)])
    tau = old.copy()
    for _ in range(iterations):
        new = np.stack([g(t) for g, t in zip(gradients, theta, strict=True)])
        direction = new + tau / graph.tracker_weights[:, None] - old
        theta, tau, old = graph.A @ theta - alpha * direction, graph.B @ tau + new - old, new
    return theta


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: f"{graph.n}")
def test_it_is_the_dense_recursion(graph):
    run, problem = run_of(graph, iterations=30, alpha=0.02)
    np.testing.assert_allclose(run.theta, dense(graph, problem.gradients, 0.02, 30), atol=1e-12)


@pytest.mark.parametrize(
    "settings", [{}, {"options": "local-steps=4", "alpha": 0.008, "iterations": 1100}], ids=["1", "4"]
)
@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: f"{graph.n}")
def test_it_reaches_the_optimum_on_every_directed_graph(graph, settings):
    run, problem = run_of(graph, **settings)
    assert np.abs(run.theta - problem.optimum()).max() < 1e-8
    assert run.history["tracker_error"].max() < 1e-10


@pytest.mark.parametrize("codec", ["float16", "q4", "topk:0.4"])
@pytest.mark.parametrize("graph", [GRAPHS[0], lopsided(3, 0)], ids=["static", "in turn"])
def test_codecs_and_schedules_leave_its_fixed_point(graph, codec):
    run, problem = run_of(
        graph, codec=codec, options="local-steps=2", momentum=0.3, alpha=0.01, iterations=1100
    )
    assert np.abs(run.theta - problem.optimum()).max() < 1e-8
    assert run.history["tracker_error"].max() < 1e-10


def test_weight_decay_and_the_objective_move_it_as_they_move_p2pft():
    weights = [0.4, 1.2, 0.2, 2.2]
    run, problem = run_of(GRAPHS[0], weights=weights, weight_decay=0.3)
    assert np.abs(run.theta - problem.optimum(weights, 0.3)).max() < 1e-8


def test_methods_without_such_a_form_say_so():
    with pytest.raises(ConfigError, match="pipelined = true: push-diging has no form that computes while"):
        simulate(
            "push-diging",
            GRAPHS[0],
            quadratics(4).gradients,
            np.zeros(5),
            alpha=0.1,
            iterations=1,
            pipelined=True,
        )

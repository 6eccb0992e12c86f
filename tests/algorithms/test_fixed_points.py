"""Where each method ends: at the optimum, or as far from it as its module says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from p2pft_flower.algorithms import ALGORITHMS, simulate
from p2pft_flower.errors import ConfigError, TopologyError
from p2pft_flower.topology import Graph

from .conftest import LOPSIDED, quadratics
from .test_methods import BALANCED, OWN_MOMENTUM, random_directed_graph

DIRECTED = [Graph.from_weights(LOPSIDED), *(random_directed_graph(2 + seed, seed) for seed in range(6))]
SYMMETRIC = [
    Graph.from_weights(BALANCED),
    *map(Graph.load, ("ring:8", "complete:3", "star:5:metropolis", "complete:1")),
]


def distances(name, graph, *, errors=False, **settings):
    """Return each peer's largest distance to the optimum in a coordinate, before and after each iteration."""
    problem = quadratics(graph.n)
    best, found = problem.optimum(settings.get("weights"), settings.get("weight_decay", 0.0)), []
    settings["callback"] = lambda _, states: found.append([np.abs(s.theta - best).max() for s in states])
    run = simulate(name, graph, problem.gradients, np.zeros(5), errors=errors, **settings)
    return np.array(found), run


@pytest.mark.parametrize("graph", DIRECTED, ids=lambda graph: f"{graph.n}")
@pytest.mark.parametrize("name", ["push-diging", "momentum-tracking"])
def test_trackers_reach_the_optimum_on_every_directed_graph(name, graph):
    settings = {"alpha": 0.04} if name in OWN_MOMENTUM else {"alpha": 0.02, "momentum": 0.5}
    found, run = distances(name, graph, iterations=1000, errors=True, **settings)
    assert found[-1].max() < 1e-8
    assert run.history["tracker_error"].max() < 1e-11


@pytest.mark.parametrize("graph", SYMMETRIC, ids=lambda graph: f"{graph.n}")
@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.5}, {"schedule": "cosine"}, {"schedule": "step:300:0.5"}], ids=str
)
def test_exact_diffusion_reaches_the_optimum_on_symmetric_graphs_also_while_the_step_falls(graph, settings):
    alpha = 0.05 if "momentum" in settings else 0.1
    found, _ = distances("exact-diffusion", graph, alpha=alpha, iterations=900, **settings)
    assert found[-1].max() < 1e-8


@pytest.mark.parametrize(
    ("name", "graph"),
    [
        *((name, graph) for name in ("push-diging", "momentum-tracking") for graph in DIRECTED[:2]),
        *(("exact-diffusion", graph) for graph in SYMMETRIC[:2]),
        ("gt-adam", DIRECTED[0]),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.n}",
)
def test_a_codec_leaves_the_fixed_point(name, graph):
    settings = {"options": "eps=1"} if name == "gt-adam" else {}
    alpha = 0.05 if name == "momentum-tracking" else 0.1
    found, run = distances(name, graph, errors=True, alpha=alpha, iterations=600, codec="q4", **settings)
    assert found[-1].max() < 1e-8
    assert run.history.get("tracker_error", np.zeros(1)).max() < 1e-10


@pytest.mark.parametrize("name", ["push-diging", "momentum-tracking", "exact-diffusion", "gt-adam"])
@pytest.mark.parametrize(
    "changes", [{"weight_decay": 0.3}, {"weights": [0.4, 1.2, 0.2, 2.2]}], ids=["decay", "examples"]
)
def test_weight_decay_and_the_objective_move_exact_methods_as_they_move_p2pft(name, changes):
    graph = Graph.from_weights(BALANCED if name == "exact-diffusion" else LOPSIDED)
    settings = {"alpha": 0.1, "options": "eps=1"} if name == "gt-adam" else {"alpha": 0.05}
    found, _ = distances(name, graph, iterations=1000, **settings, **changes)
    assert found[-1].max() < 1e-8


def sgp_at_rest(graph, alpha):
    """Where z = B (w z − α H (z − c)) / w, (n, q): solved as one linear system."""
    problem, n, q = quadratics(graph.n), graph.n, 5
    values, vectors = np.linalg.eig(graph.B)
    w = np.real(vectors[:, np.argmax(np.real(values))])
    w = n * w / w.sum()
    mix = np.kron(graph.B / w[:, None], np.eye(q))
    curvature = np.zeros((n * q, n * q))
    for i, H in enumerate(problem.H):
        curvature[i * q : (i + 1) * q, i * q : (i + 1) * q] = H
    scale = np.kron(np.diag(w), np.eye(q))
    system = np.eye(n * q) - mix @ (scale - alpha * curvature)
    return np.linalg.solve(system, mix @ (alpha * curvature @ problem.c.ravel())).reshape(n, q)


@pytest.mark.parametrize("graph", DIRECTED[:4], ids=lambda graph: f"{graph.n}")
def test_sgp_rests_off_the_unweighted_optimum_by_a_multiple_of_alpha(graph):
    problem, off = quadratics(graph.n), {}
    for alpha in (0.04, 0.02, 0.01):
        rest = sgp_at_rest(graph, alpha)
        stays = simulate("sgp", graph, problem.gradients, rest, alpha=alpha, iterations=20)
        np.testing.assert_allclose(stays.theta, rest, rtol=0, atol=1e-12)
        off[alpha] = np.abs(rest - problem.optimum()).max()
        assert 5 * alpha < off[alpha] < 21 * alpha
    assert off[0.04] / off[0.02] == pytest.approx(2, rel=0.15)
    assert off[0.02] / off[0.01] == pytest.approx(2, rel=0.1)
    for settings in ({"alpha": 0.04}, {"alpha": 0.02, "momentum": 0.5}):
        _, run = distances("sgp", graph, iterations=1000, **settings)
        np.testing.assert_allclose(run.theta, sgp_at_rest(graph, 0.04), rtol=0, atol=1e-6)


def test_sgp_has_no_bias_of_the_graph_where_dgd_has():
    small = {
        name: distances(name, DIRECTED[0], alpha=2e-3, iterations=2500)[0][-1].max()
        for name in ("sgp", "dgd")
    }
    assert small["sgp"] < 0.06
    assert small["dgd"] > 0.5


def test_gt_adam_circles_the_optimum_with_a_constant_step_and_reaches_it_with_a_decaying_one():
    # A β₂ that forgets sooner than the default, so that few iterations show it.
    for alpha, beta2 in ((0.04, 0.9), (0.02, 0.9), (0.04, 0.99)):
        settings = {"alpha": alpha, "iterations": 1500, "options": f"beta2={beta2}"}
        found, run = distances("gt-adam", DIRECTED[0], errors=True, **settings)
        assert 1.2 * alpha < found[-500:].max(axis=1).mean() < 2 * alpha
        assert found[-500:].max() < 5 * alpha
        assert run.history["tracker_error"].max() < 1e-11
    for settings in ({"schedule": "cosine"}, {"options": "eps=1"}):
        for graph in DIRECTED[:4]:
            found, _ = distances("gt-adam", graph, alpha=0.1, iterations=1000, **settings)
            assert found[-1].max() < 1e-8, (settings, graph.n)


def test_exact_diffusion_drifts_in_float32_by_what_its_module_says():
    problem, graph = quadratics(4), Graph.load("ring-4")
    H, c = problem.H.astype("f4"), problem.c.astype("f4")
    gradients = [lambda t, H=h, c=m: H @ (t - c) for h, m in zip(H, c, strict=True)]
    off = {
        name: np.abs(
            simulate(name, graph, gradients, np.zeros(5, "f4"), alpha=0.05, iterations=2000).theta
            - problem.optimum()
        ).max()
        for name in ("exact-diffusion", "p2pft")
    }
    assert off["p2pft"] < 2e-5
    assert 1e-4 < off["exact-diffusion"] < 5e-3


@pytest.mark.parametrize(
    "W",
    [LOPSIDED, [[1, 1, 0], [1, 1, 1], [0, 1, 1]], [[1, 0, 1], [1, 1, 0], [0, 1, 1]]],
    ids=["lopsided", "undirected, not balanced", "doubly stochastic, directed"],
)
def test_exact_diffusion_refuses_graphs_that_are_not_symmetric_by_name(W):
    graph = Graph.from_weights(W, name="odd-one")
    assert not graph.symmetric
    with pytest.raises(
        TopologyError, match=r"graph 'odd-one' is not symmetric.*ExactDiffusion.*p2pft.*metropolis"
    ):
        distances("exact-diffusion", graph, alpha=0.1, iterations=1)


def test_symmetry_is_that_of_what_receivers_weigh():
    assert Graph.from_weights(np.diag([1, 2, 3, 4]) @ BALANCED).symmetric
    assert not Graph.from_weights(np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]])).symmetric
    for graph in SYMMETRIC:
        assert graph.symmetric
        assert graph.undirected
        assert graph.doubly_stochastic


@pytest.mark.parametrize("name", OWN_MOMENTUM)
def test_a_method_with_its_own_momentum_refuses_the_heavy_ball_by_name(name):
    with pytest.raises(ConfigError, match=rf"^momentum = 0.5: {name} has a momentum of its own.*beta1"):
        distances(name, DIRECTED[0], alpha=0.1, iterations=1, momentum=0.5)
    for option, message in (("beta1=1", r"beta1 = 1.0: must be in \[0, 1\)"), ("beta1=x", "is no number")):
        with pytest.raises(ConfigError, match=message):
            distances(name, DIRECTED[0], alpha=0.1, iterations=1, options=option)
    with pytest.raises(ConfigError, match=r"eps = 0\.0: must be a positive number|has no option 'eps'"):
        distances(name, DIRECTED[0], alpha=0.1, iterations=1, options="eps=0")


@pytest.mark.parametrize("name", ["sgp", "push-diging"])
def test_what_follows_from_the_graph_is_no_option(name):
    with pytest.raises(ConfigError, match=rf"{name} has no option 'tracker-weight'; it has: none"):
        distances(name, DIRECTED[0], alpha=0.1, iterations=1, options="tracker-weight=2")


def test_without_averaging_momentum_tracking_is_p2pft():
    same = [
        distances(name, DIRECTED[0], alpha=0.02, iterations=20, options=options)[1].theta
        for name, options in (("momentum-tracking", "beta1=0"), ("p2pft", ""))
    ]
    np.testing.assert_array_equal(*same)


def test_every_method_has_a_row_in_the_docs():
    docs = (Path(__file__).resolve().parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in ALGORITHMS:
        assert f"| `{name}` |" in docs

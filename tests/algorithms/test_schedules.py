"""Methods on graphs whose weights change with the iteration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pft_flower.algorithms import simulate
from p2pft_flower.algorithms.codecs import make_codec
from p2pft_flower.algorithms.compression import safe_step
from p2pft_flower.algorithms.p2pft import P2PFT
from p2pft_flower.errors import ConfigError, TopologyError
from p2pft_flower.topology import Graph
from p2pft_flower.topology.schedule import scheduled
from tests.examples import write_example

from .conftest import quadratics
from .test_methods import random_directed_graph


def lopsided(n, seed, period=3):
    """Return random directed weights in turn: unbalanced, and connected only over all turns."""
    whole, rng = random_directed_graph(n, seed), np.random.default_rng(seed)
    turns = [np.diag(np.diag(whole.W)) for _ in range(period)]
    for j, i in whole.edges:
        turns[rng.integers(period)][i, j] = whole.W[i, j] * rng.uniform(0.5, 2)
    return whole.in_turn(turns, "lopsided in turn")


GRAPHS = {
    "exponential": scheduled(Graph.load("directed-ring:6"), "one-peer-exponential"),
    "base": scheduled(Graph.load("directed-ring:5"), "base:1"),
    "shared edges": scheduled(Graph.load("directed-ring-4"), "lopsided-4,directed-ring-4"),
    **{f"random {seed}": lopsided(3 + seed % 4, seed) for seed in range(8)},
}
RUN_TO_THE_END = {
    name: graph
    for name, graph in GRAPHS.items()
    if name not in ("random 3", "random 4", "random 5", "random 6")
}
"""Those on which methods run until they rest: every named schedule, and random ones of 3 to 6 peers."""
EXACT = {
    "p2pft": {"alpha": 0.04, "iterations": 1300},
    "8 local steps": {"options": "local-steps=8", "alpha": 0.002, "iterations": 1700},
    "push-diging": {"alpha": 0.02, "iterations": 1300},
    "momentum-tracking": {"alpha": 0.04, "iterations": 1300},
}


def run_of(name, graph, **changes):
    problem = quadratics(graph.n, seed=3)
    chosen = EXACT[name] | changes
    method = "p2pft" if name == "8 local steps" else name
    return simulate(method, graph, problem.gradients, np.zeros(5), **chosen), problem.optimum()


def dense_p2pft(graph, gradients, alpha, iterations):
    """θ ← A_k (θ − α τ), τ ← B_k (τ + g⁺ − g), with whole matrices."""
    theta = np.zeros((graph.n, 5))
    grads = np.stack([g(t) for g, t in zip(gradients, theta, strict=True)])
    tau = grads.copy()
    for k in range(iterations):
        W = graph.turns[k % len(graph.turns)]
        theta = (W / W.sum(1, keepdims=True)) @ (theta - alpha * tau)
        new = np.stack([g(t) for g, t in zip(gradients, theta, strict=True)])
        tau, grads = (W / W.sum(0, keepdims=True)) @ (tau + new - grads), new
    return theta


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_p2pft_is_the_dense_recursion_with_the_weights_of_each_iteration(graph):
    problem = quadratics(graph.n)
    run = simulate("p2pft", graph, problem.gradients, np.zeros(5), alpha=0.05, iterations=25)
    np.testing.assert_allclose(run.theta, dense_p2pft(graph, problem.gradients, 0.05, 25), atol=1e-12)


@pytest.mark.parametrize("graph", RUN_TO_THE_END.values(), ids=RUN_TO_THE_END)
@pytest.mark.parametrize("name", EXACT)
def test_exact_methods_reach_the_optimum_on_every_schedule(name, graph):
    run, best = run_of(name, graph)
    assert np.abs(run.theta - best).max() < 1e-8
    assert run.history["tracker_error"].max() < 1e-9


@pytest.mark.parametrize("codec", ["q4", "topk:0.4"])
@pytest.mark.parametrize("graph", [GRAPHS["random 0"], GRAPHS["shared edges"]], ids=["3", "4"])
@pytest.mark.parametrize("name", EXACT)
def test_a_codec_leaves_the_fixed_point_of_every_schedule(name, graph, codec):
    alpha = 0.004 if name == "8 local steps" else 0.04
    run, best = run_of(name, graph, codec=codec, iterations=1000, alpha=alpha)
    assert np.abs(run.theta - best).max() < 1e-8
    assert run.history["tracker_error"].max() < 1e-9


def test_sgp_counts_every_peer_the_same_on_unbalanced_weights_that_change():
    graph = GRAPHS["random 2"]
    problem, off = quadratics(graph.n), []
    for alpha in (0.02, 0.004):
        settings = {"alpha": alpha, "iterations": int(25 / alpha), "errors": False}
        run = simulate("sgp", graph, problem.gradients, np.zeros(5), **settings)
        off.append(np.abs(run.theta.mean(axis=0) - problem.optimum()).max())
    assert off[1] < 0.25 * off[0]


def test_a_codec_adds_no_bias_to_sgp_where_an_edge_carries_in_several_turns():
    graph = GRAPHS["shared edges"]
    problem, ends = quadratics(4), []
    for codec in ("none", "q4"):
        run = simulate("sgp", graph, problem.gradients, np.zeros(5), alpha=0.02, iterations=1500, codec=codec)
        ends.append(np.abs(run.theta - problem.optimum()).max())
    assert ends[1] < 2 * ends[0]


def test_simulate_refuses_what_would_have_no_effect():
    settings = {"alpha": 0.1, "iterations": 1, "schedule_graph": "base:1"}
    problem = quadratics(4)
    for name in ("local", "centralized"):
        with pytest.raises(ConfigError, match="exchanges nothing"):
            simulate(name, Graph.load("ring-4"), problem.gradients, np.zeros(5), **settings)
    with pytest.raises(ConfigError, match="for a method by name"):
        simulate(
            P2PFT(lambda _: 0.1),
            Graph.load("ring-4"),
            problem.gradients,
            np.zeros(5),
            alpha=0.1,
            iterations=1,
            pipelined=True,
        )


def test_methods_for_one_matrix_look_at_every_turn():
    balanced, unbalanced = GRAPHS["base"], GRAPHS["random 0"]
    problem = quadratics(5, seed=3)
    same = simulate("gt-dgd", balanced, problem.gradients, np.zeros(5), alpha=0.02, iterations=1300)
    assert np.abs(same.theta - problem.optimum()).max() < 1e-8
    for name in ("gt-dgd", "exact-diffusion"):
        with pytest.raises(TopologyError, match=r"changes its weights|not doubly stochastic"):
            simulate(
                name, unbalanced, quadratics(unbalanced.n).gradients, np.zeros(5), alpha=0.1, iterations=1
            )
    with pytest.raises(TopologyError, match="ExactDiffusion's correction holds for one W only"):
        simulate("exact-diffusion", balanced, problem.gradients, np.zeros(5), alpha=0.1, iterations=1)


def test_exact_diffusion_would_be_wrong_where_weights_change(monkeypatch):
    """Why it is refused: with the very weights on which every other method is exact it diverges."""
    monkeypatch.setattr("p2pft_flower.algorithms.simulation.check_graph", lambda *_: None)
    problem, graph = quadratics(5, seed=3), GRAPHS["base"]
    with np.errstate(all="ignore"):
        run = simulate("exact-diffusion", graph, problem.gradients, np.zeros(5), alpha=0.02, iterations=1300)
    assert not np.abs(run.theta - problem.optimum()).max() < 1e-3


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(2, 6),
    seed=st.integers(0, 10_000),
    period=st.integers(1, 4),
    steps=st.integers(1, 3),
    codec=st.sampled_from(["none", "float16", "int8", "q3", "topk:0.3"]),
)
def test_the_trackers_sum_to_the_gradients_on_every_schedule_whatever_a_codec_loses(
    n, seed, period, steps, codec
):
    problem, graph = quadratics(n, seed=seed), lopsided(n, seed, period)
    rng = np.random.default_rng(seed)
    noisy = [lambda t, g=g: g(t) + rng.normal(size=t.shape) for g in problem.gradients]
    run = simulate(
        "p2pft",
        graph,
        noisy,
        rng.normal(size=(n, 5)),
        alpha=0.01,
        iterations=30,
        options=f"local-steps={steps}",
        codec=codec,
    )
    assert run.history["tracker_error"].max() < 1e-11


def test_one_turn_chooses_the_same_step_as_the_graph_itself():
    for graph in (Graph.load("lopsided-4"), Graph.load("exponential:8")):
        for codec in ("q4", "q3", "topk:0.2"):
            coder = make_codec(codec)
            assert safe_step(graph.in_turn([graph.W], "alone"), coder) == safe_step(graph, coder)


def test_the_example_in_the_docs_reaches_the_optimum(tmp_path):
    file = write_example("my_schedule", tmp_path)
    problem = quadratics(4)
    run = simulate(
        "p2pft",
        Graph.load("directed-ring-4"),
        problem.gradients,
        np.zeros(5),
        alpha=0.05,
        iterations=1000,
        schedule_graph=f"{file}:pairs",
    )
    np.testing.assert_allclose(run.theta, np.tile(problem.optimum(), (4, 1)), rtol=0, atol=1e-8)

"""Every method against the dense recursion and against known optima."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pft_flower.algorithms import ALGORITHMS, Columns, Rows, simulate
from p2pft_flower.algorithms.p2pft import P2PFT, Tracking
from p2pft_flower.algorithms.registry import make_algorithm
from p2pft_flower.algorithms.seam import Send, Take
from p2pft_flower.errors import ConfigError, TopologyError
from p2pft_flower.topology import Graph

from .conftest import LOPSIDED, quadratics


def random_directed_graph(n, seed):
    """A ring (so that it is strongly connected) and random extra edges, all with random weights."""
    rng = np.random.default_rng(seed)
    W = np.diag(rng.uniform(0.1, 2, n))
    for i in range(n):
        W[(i + 1) % n, i] = rng.uniform(0.1, 5)
    extra = (rng.random((n, n)) < 0.3) & (W == 0)
    W[extra] = rng.uniform(0.1, 5, extra.sum())
    return Graph.from_weights(W)


def dense(name, A, B, grads, theta, alpha, iterations, momentum=0.0):
    """The matrix form of each method, written independently: θ is (n, q)."""

    def G(t):
        return np.stack([g(row) for g, row in zip(grads, t, strict=True)])

    V = np.zeros_like(theta)
    if name in ("sgp", "push-diging"):
        values, vectors = np.linalg.eig(B)
        w = np.real(vectors[:, np.argmax(np.real(values))])[:, None]
        w = len(B) * w / w.sum()
        x, g = w * theta, G(theta)
        y = g
        for _ in range(iterations):
            V = momentum * V + y
            x, w = B @ (x - alpha * V), B @ w
            new = G(x / w)
            y = B @ (y + new - g) if name == "push-diging" else new
            g = new
        return x / w, y if name == "push-diging" else None
    if name == "exact-diffusion":  # as the paper has it
        psi = theta
        for _ in range(iterations):
            V = momentum * V + G(theta)
            old, psi = psi, theta - alpha * V
            theta = (np.eye(len(A)) + A) / 2 @ (psi + theta - old)
        return theta, None
    if name in ("momentum-tracking", "gt-adam"):
        g = tau = m = G(theta)
        first = second = np.zeros_like(theta)
        for t in range(1, iterations + 1):
            first, second = 0.9 * first + 0.1 * tau, 0.999 * second + 0.001 * tau**2
            adam = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
            theta = A @ (theta - alpha * (adam if name == "gt-adam" else tau))
            new = G(theta) if name == "gt-adam" else 0.9 * m + 0.1 * G(theta)
            tau, m = B @ (tau + new - m), new
        return theta, tau
    if name in ("p2pft", "gt-dgd"):
        mixer = B if name == "p2pft" else A
        g = tau = G(theta)
        for _ in range(iterations):
            V = momentum * V + tau
            theta = A @ (theta - alpha * V)
            new = G(theta)
            tau = mixer @ (tau + new - g)
            g = new
        return theta, tau
    for _ in range(iterations):
        V = momentum * V + G(theta)
        if name == "dgd":
            theta = A @ (theta - alpha * V)
        elif name == "local":
            theta = theta - alpha * V
        else:
            V[:] = V.mean(axis=0)
            theta = theta - alpha * V
    return theta, None


BALANCED = np.array([[2, 1, 0, 1], [1, 2, 1, 0], [0, 1, 2, 1], [1, 0, 1, 2]]) / 4.0


OWN_MOMENTUM = ("momentum-tracking", "gt-adam")
"""Methods that refuse heavy ball."""


@pytest.mark.parametrize(
    ("name", "momentum"),
    [(n, m) for n in ALGORITHMS for m in (0.0, 0.8) if m == 0.0 or n not in OWN_MOMENTUM],
)
def test_each_method_equals_its_dense_recursion(name, momentum):
    problem = quadratics(4)
    graph = Graph.from_weights(BALANCED if name in ("gt-dgd", "exact-diffusion") else LOPSIDED)
    theta0 = np.random.default_rng(1).normal(size=5)
    run = simulate(name, graph, problem.gradients, theta0, alpha=0.02, iterations=60, momentum=momentum)
    theta, tau = dense(name, graph.A, graph.B, problem.gradients, np.tile(theta0, (4, 1)), 0.02, 60, momentum)
    np.testing.assert_allclose(run.theta, theta, rtol=0, atol=1e-12)
    if tau is None:
        assert run.tau is None
    else:
        np.testing.assert_allclose(run.tau, tau, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 9), seed=st.integers(0, 10_000), alpha=st.floats(1e-4, 0.05))
def test_p2pft_equals_the_dense_recursion_on_random_directed_graphs(n, seed, alpha):
    problem, graph = quadratics(n, seed=seed), random_directed_graph(n, seed)
    theta0 = np.random.default_rng(seed).normal(size=(n, 5))
    run = simulate("p2pft", graph, problem.gradients, theta0, alpha=alpha, iterations=15)
    theta, tau = dense("p2pft", graph.A, graph.B, problem.gradients, theta0, alpha, 15)
    scale = max(1.0, np.abs(tau).max(), np.abs(theta).max())
    np.testing.assert_allclose(run.theta, theta, rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(run.tau, tau, rtol=0, atol=1e-12 * scale)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 9), seed=st.integers(0, 10_000))
def test_the_trackers_sum_to_the_gradients_after_every_iteration_also_with_noise(n, seed):
    problem, graph = quadratics(n, seed=seed), random_directed_graph(n, seed)
    rng = np.random.default_rng(seed)
    noisy = [lambda t, g=g: g(t) + rng.normal(size=t.shape) for g in problem.gradients]
    gaps = []

    def look(k, states):
        gaps.append(np.abs(sum(s.tau for s in states) - sum(s.grad for s in states)).max())

    run = simulate("p2pft", graph, noisy, np.zeros(5), alpha=1e-3, iterations=30, callback=look)
    assert len(gaps) == 31
    assert max(gaps) < 1e-11
    np.testing.assert_allclose(run.history["tracker_error"], gaps, rtol=0, atol=1e-12)


def test_without_errors_a_run_is_the_same_and_has_no_history(lopsided):
    gradients, theta0 = quadratics(4).gradients, np.ones(5)
    runs = [
        simulate("p2pft", lopsided, gradients, theta0, alpha=0.01, iterations=5, errors=errors)
        for errors in (True, False)
    ]
    assert (runs[0].theta == runs[1].theta).all()
    assert len(runs[0].history["consensus_error"]) == 6
    assert runs[1].history == {}


@dataclass(frozen=True)
class OneRowStochasticMatrix:
    """Gradient tracking as most systems do it: the receiver's weights for both exchanges."""

    alpha: object
    momentum: float = 0.0
    phases: ClassVar = ("theta", "tau")

    def start(self, theta, gradient):
        grad = gradient(theta)
        return Tracking(theta, tau=grad, grad=grad)

    def step(self, k, state, gradient):
        theta = yield Rows(state.theta - self.alpha(k) * state.tau)
        grad = gradient(theta)
        tau = yield Rows(state.tau + grad - state.grad)
        return Tracking(theta, tau, grad)


@pytest.mark.parametrize(
    "graph", [Graph.from_weights(LOPSIDED), random_directed_graph(6, 3)], ids=["lopsided", "random"]
)
def test_only_p2pft_reaches_the_exact_optimum_on_directed_unbalanced_graphs(graph):
    assert not graph.doubly_stochastic
    problem = quadratics(graph.n)
    best = problem.optimum()
    exact = simulate("p2pft", graph, problem.gradients, np.zeros(5), alpha=0.03, iterations=1700)
    np.testing.assert_allclose(exact.theta, np.tile(best, (graph.n, 1)), rtol=0, atol=1e-9)
    for alpha in (0.02, 0.004):
        biased = simulate("dgd", graph, problem.gradients, np.zeros(5), alpha=alpha, iterations=2000)
        assert np.abs(biased.theta - best).max() > 0.05
    one_matrix = OneRowStochasticMatrix(alpha=lambda k: 0.02)
    wrong = simulate(one_matrix, graph, problem.gradients, np.zeros(5), alpha=0.02, iterations=1700)
    assert np.abs(wrong.theta - best).max() > 0.05


def test_gt_dgd_reaches_the_optimum_on_a_balanced_graph_and_refuses_any_other(lopsided):
    problem = quadratics(4)
    run = simulate(
        "gt-dgd", Graph.from_weights(BALANCED), problem.gradients, np.zeros(5), alpha=0.05, iterations=1000
    )
    np.testing.assert_allclose(run.theta, np.tile(problem.optimum(), (4, 1)), rtol=0, atol=1e-9)
    with pytest.raises(TopologyError, match=r"lopsided.*not doubly stochastic.*p2pft"):
        simulate("gt-dgd", lopsided, problem.gradients, np.zeros(5), alpha=0.05, iterations=1)


def test_a_transposed_graph_is_another_graph(lopsided):
    """W[i, j] is what i gives to what comes from j."""
    problem = quadratics(4)
    forward = simulate("dgd", lopsided, problem.gradients, np.zeros(5), alpha=0.02, iterations=600)
    backward = simulate(
        "dgd", Graph.from_weights(LOPSIDED.T), problem.gradients, np.zeros(5), alpha=0.02, iterations=600
    )
    # Small α: dgd settles where Σ π_i ∇L_i = 0, π the left eigenvector of A.
    assert np.abs(forward.theta - backward.theta).max() > 0.1
    values, vectors = np.linalg.eig(lopsided.A.T)
    pi = np.real(vectors[:, np.argmax(np.real(values))])
    small = simulate("dgd", lopsided, problem.gradients, forward.theta, alpha=1e-3, iterations=4000)
    np.testing.assert_allclose(small.theta.mean(axis=0), problem.optimum(4 * pi / pi.sum()), atol=2e-2)


@pytest.mark.parametrize("options", [{"momentum": 0.7}, {"schedule": "step:1000:0.5"}, {}], ids=str)
def test_momentum_and_schedules_leave_the_fixed_point_of_p2pft(lopsided, options):
    problem = quadratics(4)
    run = simulate("p2pft", lopsided, problem.gradients, np.zeros(5), alpha=0.03, iterations=1600, **options)
    np.testing.assert_allclose(run.theta, np.tile(problem.optimum(), (4, 1)), rtol=0, atol=1e-8)


def test_weight_decay_moves_every_peer_to_the_regularised_optimum(lopsided):
    problem = quadratics(4)
    run = simulate(
        "p2pft", lopsided, problem.gradients, np.zeros(5), alpha=0.02, iterations=1700, weight_decay=0.3
    )
    np.testing.assert_allclose(
        run.theta, np.tile(problem.optimum(weight_decay=0.3), (4, 1)), rtol=0, atol=1e-9
    )


def test_objective_examples_moves_every_peer_to_the_image_weighted_optimum(lopsided):
    from p2pft_flower.algorithms.objective import peer_weights

    problem, weights = quadratics(4), peer_weights("examples", [100, 300, 50, 550])
    assert weights.tolist() == [0.4, 1.2, 0.2, 2.2]
    run = simulate(
        "p2pft", lopsided, problem.gradients, np.zeros(5), alpha=0.03, iterations=2000, weights=weights
    )
    np.testing.assert_allclose(run.theta, np.tile(problem.optimum(weights), (4, 1)), rtol=0, atol=1e-9)
    central = simulate(
        "centralized", lopsided, problem.gradients, np.zeros(5), alpha=0.1, iterations=900, weights=weights
    )
    np.testing.assert_allclose(central.theta[0], problem.optimum(weights), rtol=0, atol=1e-9)


def test_local_peers_stay_at_their_own_minimisers(lopsided):
    problem = quadratics(4)
    run = simulate("local", lopsided, problem.gradients, np.zeros(5), alpha=0.1, iterations=600)
    np.testing.assert_allclose(run.theta, problem.c, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_dtype_is_kept(name, dtype):
    problem = quadratics(4)
    run = simulate(
        name,
        Graph.from_weights(BALANCED),
        problem.gradients,
        np.zeros(5, dtype),
        alpha=0.1,
        iterations=3,
        momentum=0.0 if name in OWN_MOMENTUM else 0.5,
        weight_decay=0.1,
        weights=[1, 2, 0.5, 0.5],
    )
    assert {v.dtype for state in run.states for v in state if isinstance(v, np.ndarray)} == {np.dtype(dtype)}
    assert all(type(v) in (np.ndarray, int, type(None)) for state in run.states for v in state)


def test_the_inputs_are_not_written_to(lopsided):
    theta0 = np.zeros((4, 5))
    simulate("p2pft", lopsided, quadratics(4).gradients, theta0, alpha=0.02, iterations=5)
    assert not theta0.any()


def test_an_own_method_plugs_in_by_name(tmp_path, monkeypatch, lopsided):
    (tmp_path / "my_module.py").write_text(
        "from dataclasses import dataclass\n"
        "from p2pft_flower.algorithms import Columns, Rows\n"
        "from p2pft_flower.algorithms.p2pft import Tracking\n\n"
        "@dataclass(frozen=True)\n"
        "class MyMethod:\n"
        "    '''Adapt-then-combine in the tracker only.'''\n"
        "    alpha: object\n"
        "    momentum: float = 0.0\n"
        "    phases = ('theta', 'tau')\n"
        "    def start(self, theta, gradient):\n"
        "        g = gradient(theta)\n"
        "        return Tracking(theta, g, g)\n"
        "    def step(self, k, state, gradient):\n"
        "        theta = (yield Rows(state.theta)) - self.alpha(k) * state.tau\n"
        "        g = gradient(theta)\n"
        "        tau = (yield Columns(state.tau)) + g - state.grad\n"
        "        return Tracking(theta, tau, g)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    problem = quadratics(4)
    for reference in ("my_module:MyMethod", f"{tmp_path}/my_module.py:MyMethod"):
        run = simulate(reference, lopsided, problem.gradients, np.zeros(5), alpha=0.03, iterations=1700)
        np.testing.assert_allclose(run.theta, np.tile(problem.optimum(), (4, 1)), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "p2p"}, r"algorithm = 'p2p' is unknown; choose one of p2pft, dgd"),
        ({"algorithm": "no_such_module:thing"}, r"cannot import 'no_such_module'"),
        ({"algorithm": "math:nothing_here"}, r"'math' has no 'nothing_here'"),
        ({"algorithm": "math:pi"}, r"'pi' is a float"),
        ({"algorithm": "types:SimpleNamespace"}, r"has no phases, start, step"),
        ({"momentum": 1.0}, r"momentum = 1.0: must be in \[0, 1\)"),
        ({"alpha": -1.0}, r"learning-rate = -1.0: must be a positive number"),
        (
            {"schedule": "linear"},
            r"schedule = 'linear' is unknown; choose one of constant, cosine, step:EVERY:FACTOR",
        ),
        ({"schedule": "step:0:2"}, r"EVERY is a whole number >= 1 and FACTOR in"),
        ({"theta0": np.zeros(5, int)}, r"theta0 has dtype int"),
        ({"theta0": np.zeros((3, 5))}, r"theta0 has shape \(3, 5\)"),
        ({"gradients": quadratics(3).gradients}, r"3 gradients for the 4 peers"),
        ({"weights": [1.0]}, r"1 weights for the 4 peers"),
        ({"gradients": [np.float32] * 4}, r"peer 0: its gradient returned shape \(5,\) float32"),
        ({"gradients": [lambda t: t[:1]] * 4}, r"peer 0: its gradient returned shape \(1,\)"),
    ],
    ids=itertools.count(),
)
def test_wrong_input_is_refused_by_name(change, message, lopsided):
    arguments = {
        "algorithm": "p2pft",
        "graph": lopsided,
        "gradients": quadratics(4).gradients,
        "theta0": np.zeros(5),
        "alpha": 0.1,
        "iterations": 2,
    } | change
    with pytest.raises(ConfigError, match=message):
        simulate(**arguments)


def test_peers_that_ask_for_different_exchanges_are_told_so(lopsided):
    @dataclass(frozen=True)
    class Odd(OneRowStochasticMatrix):
        def step(self, k, state, gradient):
            if gradient(state.theta)[0] > 0:
                yield Rows(state.theta)
            return state

    signs = [lambda t, i=i: np.full_like(t, (-1.0) ** i) for i in range(4)]
    with pytest.raises(RuntimeError, match=r"do not ask for the same exchange"):
        simulate(Odd(alpha=lambda k: 0.1), lopsided, signs, np.zeros(2), alpha=0.1, iterations=1)


def test_schedules_fall_as_they_say():
    from p2pft_flower.algorithms.schedules import make_schedule

    assert {make_schedule("constant", 0.3, 10)(k) for k in range(10)} == {0.3}
    cosine = [make_schedule("cosine", 1.0, 10)(k) for k in range(11)]
    assert cosine[0] == 1.0
    assert cosine[5] == pytest.approx(0.5)
    assert cosine[10] == pytest.approx(0.0)
    assert [make_schedule("step:3:0.1", 1.0, 10)(k) for k in (0, 2, 3, 6)] == pytest.approx([1, 1, 0.1, 0.01])


def test_a_method_that_miscounts_its_exchanges_is_told_so(lopsided):
    @dataclass(frozen=True)
    class TooFew(OneRowStochasticMatrix):
        phases: ClassVar = ("theta", "tau", "third")

    @dataclass(frozen=True)
    class TooMany(OneRowStochasticMatrix):
        phases: ClassVar = ("theta",)

    for method, message in (
        (TooFew, "asks for 2 exchanges.*names 3"),
        (TooMany, "more than 1 exchanges.*names 1"),
    ):
        with pytest.raises(RuntimeError, match=message):
            simulate(
                method(alpha=lambda k: 0.1),
                lopsided,
                quadratics(4).gradients,
                np.zeros(5),
                alpha=0.1,
                iterations=1,
            )


@pytest.mark.parametrize(
    ("asks", "message"),
    [
        ([Send(Rows)], "goes on after Send without Take"),
        ([Send(Rows), Send(Rows), Take()], "goes on after Send without Take"),
        ([Send(Rows), Rows, Take()], "goes on after Send without Take"),
        ([Take()], "takes what it has not sent"),
        ([Rows, Take()], "takes what it has not sent"),
        ([Send(Rows), Take(), Send(Rows), Take()], "more than 1 exchanges.*names 1"),
    ],
    ids=str,
)
def test_every_send_has_one_take_and_comes_before_it(asks, message, lopsided):
    @dataclass(frozen=True)
    class Wrong(OneRowStochasticMatrix):
        phases: ClassVar = ("theta",)

        def step(self, k, state, gradient):
            for one in asks:
                if isinstance(one, Send):
                    yield Send(one.mix(state.theta))
                else:
                    yield one if isinstance(one, Take) else one(state.theta)
            return state

    with pytest.raises(RuntimeError, match=message):
        simulate(
            Wrong(alpha=lambda k: 0.1),
            lopsided,
            quadratics(4).gradients,
            np.zeros(5),
            alpha=0.1,
            iterations=1,
        )


def test_a_vector_that_is_sent_and_then_taken_is_mixed_as_one_that_is_yielded(lopsided):
    @dataclass(frozen=True)
    class Apart(P2PFT):
        def step(self, k, state, gradient):
            yield Send(Rows(state.theta - self.alpha(k) * state.tau))
            theta = yield Take()
            grad = gradient(theta)
            yield Send(Columns(state.tau + grad - state.grad))
            return state._replace(theta=theta, tau=(yield Take()), grad=grad)

    gradients = quadratics(4).gradients
    settings = {"alpha": 0.05, "iterations": 20}
    apart = simulate(Apart(alpha=lambda k: 0.05), lopsided, gradients, np.zeros(5), **settings)
    together = simulate("p2pft", lopsided, gradients, np.zeros(5), **settings)
    np.testing.assert_array_equal(apart.theta, together.theta)
    np.testing.assert_array_equal(apart.tau, together.tau)


def test_an_own_method_whose_placed_takes_one_weight_is_refused_by_name(tmp_path):
    file = tmp_path / "my_method.py"
    file.write_text(
        "from p2pft_flower.algorithms.p2pft import P2PFT\n\n\n"
        "class Mine(P2PFT):\n"
        "    def placed(self, tracker_weight):\n"
        "        return self\n"
    )
    with pytest.raises(ConfigError, match=r"Mine': its placed\(\) is called with two numbers"):
        make_algorithm(f"{file}:Mine", alpha=lambda _: 0.1)

"""Gradients that a problem computes for all peers of a host at once."""

from __future__ import annotations

import numpy as np
import pytest

from p2pft_flower.algorithms.registry import ALGORITHMS
from p2pft_flower.host.exchange import DivergedError
from p2pft_flower.topology import Graph

from .hosts import ALONE, FOLDED, run_together, unix
from .quadratic import GRAPH, Quadratics, plans, thetas

RING = Graph.load("ring:4")


class Together(Quadratics):
    """Quadratics, whose gradients may be drawn at once; ``calls`` has the peers of each time."""

    def __init__(self, change=lambda found: found, **faults):
        super().__init__(**faults)
        self.change, self.calls = change, []

    def together(self, objectives):
        def draw(given):
            self.calls.append(tuple(given))
            return self.change({p: objectives[p].gradient(theta) for p, theta in given.items()})

        return draw


def trained(folder, hosts, addresses, kind, graph=GRAPH, **settings):
    problems = [kind() for _ in hosts]
    results = run_together(plans(graph, hosts, addresses, folder, **settings), problems)
    assert [r for r in results if isinstance(r, Exception)] == []
    return thetas(problems), problems


WITHOUT_FIRST = {"dgd", "exact-diffusion", "local", "sgp"}
"""Methods that draw no gradient at their start."""


@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {"centralized"}))
def test_every_method_asks_for_the_gradients_of_all_peers_of_its_host_at_once(algorithm, tmp_path):
    settings = {"algorithm": algorithm, "iterations": 6, "learning-rate": 0.05}
    plain, _ = trained(tmp_path / "plain", [[0, 1, 2, 3]], {}, Quadratics, RING, **settings)
    found, (problem,) = trained(tmp_path / "together", [[0, 1, 2, 3]], {}, Together, RING, **settings)
    first = 0 if algorithm in WITHOUT_FIRST else 1
    assert problem.calls == [(0, 1, 2, 3)] * (6 + first)
    np.testing.assert_array_equal(found, plain)


def test_local_steps_that_travel_meanwhile_are_drawn_at_once_too(tmp_path):
    settings = {"algorithm-options": "local-steps=3", "pipelined": True, "iterations": 4}
    plain, _ = trained(tmp_path / "plain", [[0, 1, 2, 3]], {}, Quadratics, **settings)
    found, (problem,) = trained(tmp_path / "together", [[0, 1, 2, 3]], {}, Together, **settings)
    assert problem.calls == [(0, 1, 2, 3)] * 13
    np.testing.assert_array_equal(found, plain)


def test_theta_does_not_depend_on_the_hosts_that_draw_at_once(tmp_path, short):
    whole, _ = trained(tmp_path / "one", [[0, 1, 2, 3]], {}, Together)
    for hosts in (FOLDED, ALONE):
        found, problems = trained(tmp_path / str(len(hosts)), hosts, unix(short), Together)
        assert [set(p.calls) for p in problems] == [{tuple(peers)} for peers in hosts]
        np.testing.assert_array_equal(found, whole)


def test_a_gradient_that_is_not_finite_is_that_peers(tmp_path):
    def broken(found):
        return found | {2: np.full_like(found[2], np.nan)}

    (result,) = run_together(plans(GRAPH, [[0, 1, 2, 3]], {}, tmp_path), [Together(broken)])
    assert isinstance(result, DivergedError)
    assert "peer 2, iteration 0: its gradient holds NaN or infinity" in str(result)


def test_a_method_that_draws_twice_at_its_start_gets_two_mini_batches(tmp_path, monkeypatch):
    (tmp_path / "doubling.py").write_text(
        METHOD.replace(
            "def step",
            "def start(self, theta, gradient):\n"
            "        one, other = gradient(theta), gradient(theta)\n"
            "        return super().start(theta, lambda _: (one + other) / 2)\n\n    def step",
        ).replace(" / 2)))", ")))")
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"algorithm": "doubling:Half", "iterations": 3}
    plain, _ = trained(tmp_path / "plain", [[0, 1, 2, 3]], {}, Quadratics, **settings)
    found, _ = trained(tmp_path / "together", [[0, 1, 2, 3]], {}, Together, **settings)
    np.testing.assert_array_equal(found, plain)


def test_weights_and_weight_decay_act_on_gradients_drawn_at_once(tmp_path):
    decayed = {"weight-decay": 0.5, "iterations": 5}
    plain, _ = trained(tmp_path / "plain", [[0, 1, 2, 3]], {}, Quadratics, **decayed)
    found, _ = trained(tmp_path / "together", [[0, 1, 2, 3]], {}, Together, **decayed)
    np.testing.assert_array_equal(found, plain)
    without, _ = trained(tmp_path / "none", [[0, 1, 2, 3]], {}, Together, iterations=5)
    assert not np.allclose(found, without)


METHOD = """
from dataclasses import dataclass
from p2pft_flower.algorithms.p2pft import P2PFT

@dataclass(frozen=True)
class Half(P2PFT):
    def step(self, k, state, gradient):
        return (yield from super().step(k, state, lambda theta: gradient(theta) / 2))
"""


def test_a_method_that_asks_for_another_function_of_theta_gets_that_functions_gradient(tmp_path, monkeypatch):
    (tmp_path / "halving.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"algorithm": "halving:Half", "iterations": 5}
    plain, _ = trained(tmp_path / "plain", [[0, 1, 2, 3]], {}, Quadratics, **settings)
    found, (problem,) = trained(tmp_path / "together", [[0, 1, 2, 3]], {}, Together, **settings)
    assert problem.calls == [(0, 1, 2, 3)]  # at the start, which asks for the peer's own
    np.testing.assert_array_equal(found, plain)

"""A host whose peers' vectors are on a device has the θ of one with NumPy's arrays, whatever the method does.

torch's CPU stands for an accelerator. That losses, returns and resumes have the same bits: test_golden.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from p2pft_flower.learning.device_vectors import DeviceVector, VectorDevice
from p2pft_flower.topology import Graph

from .hosts import FOLDED, run_together, unix
from .quadratic import GRAPH, Peer, Quadratics, plans, thetas


class PeerOnDevice(Peer):
    def gradient(self, theta):
        assert isinstance(theta, DeviceVector)
        return super().gradient(theta)


class OnDevice(Quadratics):
    vector_device = VectorDevice("cpu")
    peer = PeerOnDevice


def trained(problem, folder, addresses, graph, **settings):
    """Train four peers on two hosts; return their last θ."""
    problems = [problem() for _ in FOLDED]
    for result in run_together(plans(graph, FOLDED, addresses, folder, **settings), problems):
        if isinstance(result, Exception):
            raise result
    return thetas(problems)


METHODS = {
    "heavy ball": {"momentum": 0.9, "learning-rate": 0.02},
    "weight decay": {"weight-decay": 0.01},
    "local steps": {"algorithm-options": "local-steps=3"},
    "pipelined": {"pipelined": True},
    "pipelined local steps": {"pipelined": True, "algorithm-options": "local-steps=2"},
    "push-diging": {"algorithm": "push-diging"},
    "sgp": {"algorithm": "sgp"},
    "momentum-tracking": {"algorithm": "momentum-tracking", "algorithm-options": "beta1=0.5"},
    "exact-diffusion": {"algorithm": "exact-diffusion"},
    "gt-dgd": {"algorithm": "gt-dgd"},
    "the best one kept": {"keep": "best:loss", "validation": 0.2},
}
SYMMETRIC = Graph.load("ring-4")


@pytest.mark.parametrize("what", METHODS)
def test_theta_is_that_of_vectors_in_memory(what, tmp_path, short):
    graph = SYMMETRIC if what in ("exact-diffusion", "gt-dgd") else GRAPH
    settings = METHODS[what]
    in_memory = trained(Quadratics, tmp_path / "memory", unix(short), graph, **settings)
    on_device = trained(OnDevice, tmp_path / "device", unix(short), graph, **settings)
    np.testing.assert_array_equal(on_device, in_memory)


def test_adams_steps_differ_by_the_rounding_of_square_roots(tmp_path, short):
    """See findings/torch_sqrt_on_cpu_is_an_ulp_off.sh."""
    settings = {"algorithm": "gt-adam"}
    in_memory = trained(Quadratics, tmp_path / "memory", unix(short), GRAPH, **settings)
    on_device = trained(OnDevice, tmp_path / "device", unix(short), GRAPH, **settings)
    np.testing.assert_allclose(on_device, in_memory, rtol=0, atol=1e-5)


def test_a_method_that_needs_another_function_is_named_with_the_function(tmp_path, short):
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "from p2pft_flower.algorithms.p2pft import P2PFT\n"
        "class Median(P2PFT):\n"
        "    def step(self, k, state, gradient):\n"
        "        np.median(state.theta)\n"
        "        return (yield from super().step(k, state, gradient))\n"
    )
    with pytest.raises(Exception, match=r"peer \d, iteration 0: its step failed: TypeError: .*numpy\.median"):
        trained(OnDevice, tmp_path, unix(short), GRAPH, algorithm=f"{tmp_path}/own.py:Median")


def test_with_a_codec_vectors_stay_in_memory(tmp_path, short):
    settings = {"codec": "q4"}
    in_memory = trained(Quadratics, tmp_path / "memory", unix(short), GRAPH, **settings)

    class WithCodec(OnDevice):
        peer = Peer

    np.testing.assert_array_equal(
        trained(WithCodec, tmp_path / "device", unix(short), GRAPH, **settings), in_memory
    )


def test_a_theta_that_is_not_finite_is_named_by_its_peer(tmp_path, short):
    with pytest.raises(Exception, match=r"peer \d, iteration \d+.* holds NaN or infinity"):
        trained(OnDevice, tmp_path, unix(short), GRAPH, iterations=200, **{"learning-rate": 1e6})

"""The keys on the method: its computation, and its payloads."""

from __future__ import annotations

from dataclasses import dataclass

from p2pft_flower.algorithms.codecs import is_own_codec, make_codec
from p2pft_flower.algorithms.objective import OBJECTIVES
from p2pft_flower.algorithms.schedules import make_schedule
from p2pft_flower.config.bounds import require, require_bounds
from p2pft_flower.topology.schedule import STATIC, check_schedule

__all__ = ["MethodConfig"]


@dataclass(frozen=True)
class MethodConfig:
    """The method, and its numbers.

    Attributes
    ----------
    algorithm : str
        A method of :mod:`p2pft_flower.algorithms` (``p2pft``, ``dgd``, ``gt-dgd``, ``exact-diffusion``,
        ``sgp``, ``push-diging``, ``momentum-tracking``, ``gt-adam``, ``local``, ``centralized``;
        docs/performance.md), one of Flower's strategies (``fedavg``, ``fedprox``, …), or
        ``my_module:my_method``.
    learning_rate : float
        The learning rate α of iteration 0.
    schedule : str
        The learning rate over the iterations: ``constant``, ``cosine`` or ``step:EVERY:FACTOR`` (in
        iterations).
    momentum : float
        Heavy-ball β in [0, 1); ``momentum-tracking`` and ``gt-adam`` have ``beta1`` in ``algorithm_options``
        instead.
    weight_decay : float
        λ ≥ 0; adds λ/2 ‖θ‖² to every peer's loss.
    objective : {"uniform", "examples"}
        ``uniform``: every peer counts the same (the paper); ``examples``: every image does. For Flower's
        strategies, the weights of their averages; FedMedian, Krum and others that do not average ignore this
        key.
    local_epochs : int
        For Flower's strategies only: number of epochs of local training in a round.
    strategy_options : str
        For Flower's strategies only: their further arguments, as ``"proximal-mu=0.1,eta=0.05"``.
    algorithm_options : str
        For methods of :mod:`p2pft_flower.algorithms` and the user's own only: their further arguments, as
        ``"local-steps=8"`` of ``p2pft``, ``"beta1=0.9"`` of ``momentum-tracking``,
        ``"beta1=0.9,beta2=0.999,eps=1e-8"`` of ``gt-adam``.
    codec : str
        The encoding of payloads (docs/performance.md): ``none``, ``float16``, ``bfloat16``, ``int8``, ``q4``,
        ``q3``, ``topk:SHARE`` or ``my_module:my_codec``; all but ``none`` encode differences from the
        receivers' knowledge.
    codec_step : float
        γ in (0, 1] of exchanges with a codec; 0: chosen by graph and codec.
    schedule_graph : str
        The weights of each iteration: ``static`` (the topology's), ``one-peer-exponential`` (one payload a
        peer, to another one each time), ``base:K`` (K neighbours, the exact mean after a period), graphs in
        turn, as ``"a.yaml,b.yaml"``, or ``my_module:my_schedule``.
    pipelined : bool
        Whether p2pft computes its gradients while payloads travel: mix, then adapt; it bears a smaller
        ``learning_rate`` then.

    Raises
    ------
    ConfigError
        If a value cannot be used; the message names the key, the value and the choices.
    """

    algorithm: str = "p2pft"
    learning_rate: float = 0.1
    schedule: str = "constant"
    momentum: float = 0.0
    weight_decay: float = 0.0
    objective: str = "uniform"
    local_epochs: int = 1
    strategy_options: str = ""
    algorithm_options: str = ""
    codec: str = "none"
    codec_step: float = 0.0
    schedule_graph: str = STATIC
    pipelined: bool = False

    def __post_init__(self) -> None:
        if not is_own_codec(self.codec):
            make_codec(self.codec)
        make_schedule(self.schedule, self.learning_rate, 1)
        check_schedule(self.schedule_graph)
        require(0.0 <= self.momentum < 1.0, "momentum", self.momentum, "in [0, 1)")
        require_bounds(self)
        require(self.objective in OBJECTIVES, "objective", self.objective, f"one of {', '.join(OBJECTIVES)}")

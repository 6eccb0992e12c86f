"""Vectors in the memory of an accelerator, with which methods and hosts calculate as with NumPy's arrays.

A method is arithmetic on its vectors, so it need not know where they are: NumPy hands an operation on
another library's array to this library (NEP 13 for ``+``, ``*`` or ``np.sqrt``, NEP 18 for ``np.zeros_like``
and the like). A :class:`DeviceVector` answers with torch's operation, on its device. ``np.asarray(vector)``
is the one way to the memory of the CPU.

Each number is computed as NumPy computes it: products and sums one by one, never fused, each rounded in the
dtype that NumPy would choose. So a method, and the sums of the exchange, have the bits that they have on the
CPU. Gradients have not, as an accelerator sums in another order.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.mixins import NDArrayOperatorsMixin

__all__ = ["DeviceVector", "VectorDevice"]

Array: TypeAlias = npt.NDArray[Any]

BLOCK = 2**22
"""Numbers that are summed at a time: their products then stay in the accelerator's cache."""

_WITH_NUMBERS: dict[np.ufunc, Callable[..., torch.Tensor]] = {
    np.add: operator.add,
    np.subtract: operator.sub,
    np.multiply: operator.mul,
    np.power: operator.pow,
}
"""What torch computes as NumPy does, also of a tensor and a plain number."""

_OF_TENSORS: dict[np.ufunc, Callable[..., torch.Tensor]] = {
    np.true_divide: torch.true_divide,
    np.negative: torch.neg,
    np.absolute: torch.abs,
    np.sqrt: torch.sqrt,
    np.square: torch.square,
    np.maximum: torch.maximum,
    np.minimum: torch.minimum,
    np.isfinite: torch.isfinite,
}


class DeviceVector(NDArrayOperatorsMixin):
    """An array whose numbers are in a tensor.

    It has the arithmetic operators, ``np.zeros_like``, ``np.concatenate`` and ``np.split``, and those of
    NumPy's element-wise functions that torch computes alike; NumPy raises TypeError for any other function.

    Parameters
    ----------
    tensor : torch.Tensor
        The numbers, on any device, without a gradient.
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the dimensions; of a vector (q,)."""
        return tuple(self.tensor.shape)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.tensor.ndim

    @property
    def size(self) -> int:
        """The number of numbers."""
        return self.tensor.numel()

    @property
    def nbytes(self) -> int:
        """The bytes that the numbers take."""
        return self.tensor.nbytes

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype of the numbers."""
        return _numpy_dtype(self.tensor.dtype)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: Any) -> DeviceVector:
        return DeviceVector(self.tensor[index])

    def copy(self) -> DeviceVector:
        """Return a copy on the same device."""
        return DeviceVector(self.tensor.clone())

    def all(self) -> bool:
        """Tell whether all are true; waits for the device."""
        return bool(self.tensor.all())

    def tobytes(self) -> bytes:
        """Return the numbers' bytes, as :meth:`numpy.ndarray.tobytes` does; waits for the device."""
        return np.asarray(self).tobytes()

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """Return the numbers as a NumPy array of its own; waits for the device."""
        if copy is False:
            raise ValueError("the numbers are on another device, and cannot be had without a copy")
        found: Array = self.tensor.detach().cpu().numpy()
        if self.tensor.device.type == "cpu":
            found = found.copy()
        return found if dtype is None else found.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Compute an element-wise function of NumPy in torch (NEP 13)."""
        out = options.pop("out", None)
        plain = _WITH_NUMBERS.get(ufunc)
        compute = plain or _OF_TENSORS.get(ufunc)
        if method != "__call__" or options or compute is None:
            return NotImplemented
        # Python's numbers take the dtype of the vectors, those of NumPy count as its rules say.
        dtype = np.result_type(*(x if isinstance(x, (int, float)) else x.dtype for x in inputs))
        found = compute(*(_operand(x, dtype, self.tensor.device, plain is not None) for x in inputs))
        if out is None:
            return DeviceVector(found)
        (target,) = out
        if not isinstance(target, DeviceVector):
            return NotImplemented
        target.tensor.copy_(found)
        return target

    def __array_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any],
        options: Mapping[str, Any],
    ) -> Any:
        """Compute another function of NumPy in torch (NEP 18)."""
        own = _FUNCTIONS.get(function)
        return NotImplemented if own is None else own(*arguments, **options)


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return np.dtype(str(dtype).removeprefix("torch."))


def _operand(x: Any, dtype: np.dtype[Any], device: torch.device, plain: bool) -> torch.Tensor | float:
    """Return an array as a tensor of ``dtype`` on ``device``, and a number as it is or as a tensor.

    A number becomes a tensor unless ``plain``: CUDA divides by a plain number by way of its reciprocal, which
    rounds twice.
    """
    wanted = getattr(torch, dtype.name)
    if isinstance(x, DeviceVector):
        return x.tensor.to(wanted)
    if isinstance(x, np.ndarray) and x.ndim:
        return torch.from_numpy(np.array(x, dtype)).to(device)
    return float(x) if plain else torch.full((), float(x), dtype=wanted, device=device)


def _zeros_like(vector: DeviceVector) -> DeviceVector:
    return DeviceVector(torch.zeros_like(vector.tensor))


def _concatenate(vectors: Sequence[DeviceVector]) -> DeviceVector:
    return DeviceVector(torch.cat([vector.tensor for vector in vectors]))


def _split(vector: DeviceVector, parts: int) -> list[DeviceVector]:
    if len(vector) % parts:
        raise ValueError(f"{len(vector)} numbers cannot be split into {parts} equal parts")
    return [DeviceVector(part) for part in torch.split(vector.tensor, len(vector) // parts)]


_FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    np.zeros_like: _zeros_like,
    np.concatenate: _concatenate,
    np.split: _split,
}


class VectorDevice:
    """The device on which a host's peers have their vectors, for :class:`~p2pft_flower.host.problem.Device`.

    Parameters
    ----------
    device : str
        torch's name of the device.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)

    def place(self, vector: Array | DeviceVector) -> DeviceVector:
        """Return a vector on the device, without a copy if it is there."""
        if isinstance(vector, DeviceVector):
            return vector
        # A copy, as nobody else may write to what a state holds.
        return DeviceVector(torch.tensor(vector, device=self._device))

    def finite(self, vectors: Sequence[DeviceVector]) -> list[bool]:
        """Tell of each vector whether all its numbers are finite; waits for the device once."""
        found: list[bool] = torch.stack([vector.tensor.isfinite().all() for vector in vectors]).tolist()
        return found

    def sums(self, terms: Mapping[int, Sequence[tuple[float, DeviceVector]]]) -> dict[int, DeviceVector]:
        """Return Σ w x of the terms of each peer, in their order; all peers at once.

        Parameters
        ----------
        terms : mapping of int to sequence of (float, (q,) vector)
            Weight w and vector x of each term of each peer; at least one term a peer.
        """
        # Those with most terms first: the t-th terms are then those of the first so many peers.
        peers = sorted(terms, key=lambda peer: -len(terms[peer]))
        vectors = {x.tensor.data_ptr(): x.tensor for own in terms.values() for _, x in own}
        row = {pointer: i for i, pointer in enumerate(vectors)}
        matrix = torch.stack(list(vectors.values()))
        turns = []
        for t in range(len(terms[peers[0]])):
            turn = [terms[peer][t] for peer in peers if t < len(terms[peer])]
            rows = self._tensor([row[x.tensor.data_ptr()] for _, x in turn], torch.int64)
            turns.append((rows, self._tensor([[w] for w, _ in turn], matrix.dtype)))
        total = matrix.new_zeros(len(peers), matrix.shape[1])
        width = max(1, BLOCK // len(matrix))
        for block in (slice(begin, begin + width) for begin in range(0, matrix.shape[1], width)):
            for t, (rows, weights) in enumerate(turns):
                products = matrix[:, block].index_select(0, rows).mul_(weights)
                sums = total[: len(rows), block]
                _ = sums.add_(products) if t else sums.copy_(products)  # no product is fused into a sum
        return {peer: DeviceVector(sums) for peer, sums in zip(peers, total, strict=True)}

    def _tensor(self, numbers: Sequence[Any], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(numbers, dtype=dtype, device=self._device)

"""Optimizers: ownership, statistics, and whether a step keeps zeros at zero."""

import inspect
import math
from collections.abc import Hashable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.mask_sets import MaskSet
from lightning_prune.tensors.masks import Mask
from lightning_prune.tensors.shards import is_sharded, local_part

_ELEMENTWISE: set[type[Any]] = {
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.ASGD,
}
_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
_PROFILER = Optimizer.profile_hook_step(lambda optimizer: None).__code__


class Steadiness:
    """Tells whether a step keeps a weight at 0 if its gradient and its statistics are 0.

    Element-wise optimizers keep zeros if no other hook runs after the step, and no method is
    replaced in the object. Only ``step`` is: schedulers of learning rates put it into a counter,
    and our hooks run inside. But 0 / (0 + eps) is NaN if eps vanishes in the precision of the
    statistics.

    The class and the attributes are looked at again if another class or number of attributes is
    found. The rest is asked at each step.

    Args:
        optimizer: The optimizer.
        least_eps: The least eps that does not vanish in the precision of the statistics.
    """

    def __init__(self, optimizer: Optimizer, least_eps: float) -> None:
        self._optimizer, self._least_eps = optimizer, least_eps
        self._looked_at: tuple[type, int] | None = None
        self._is_elementwise = False

    def leaves_zeros(self) -> bool:
        """Whether the next step keeps such weights at 0."""
        optimizer = self._optimizer
        found = type(optimizer), len(vars(optimizer))
        if found != self._looked_at:
            kind = cast(Hashable, type(optimizer))
            is_patched = _replaces_methods(kind, tuple(vars(optimizer)))
            self._looked_at, self._is_elementwise = found, not is_patched and _is_elementwise(kind)
        if not self._is_elementwise or len(optimizer._optimizer_step_post_hooks) > 1:
            return False
        for group in optimizer.param_groups:
            if group.get("eps", math.inf) < self._least_eps:
                return False
        return True


@cache
def _replaces_methods(kind: Any, names: tuple[str, ...]) -> bool:
    """Whether an object with these attributes has a method of its own, other than ``step``."""
    return any(hasattr(kind, name) for name in names if name != "step")


@cache
def _is_elementwise(kind: Any) -> bool:
    """Whether a class has all methods of an element-wise class of torch, but ``__init__``."""
    known = next((base for base in kind.__mro__ if base in _ELEMENTWISE), None)
    return known is not None and all(
        _remove_profiler(inspect.getattr_static(kind, name)) is _remove_profiler(method)
        for name, method in _list_methods(known)
    )


def _list_methods(kind: type[Any]) -> list[tuple[str, Any]]:
    """Return the methods and properties of a class, inherited ones included, but ``__init__``."""
    members = ((name, inspect.getattr_static(kind, name)) for name in dir(kind))
    return [
        (name, member)
        for name, member in members
        if name != "__init__" and (callable(member) or isinstance(member, property))
    ]


def _remove_profiler(method: Any) -> Any:
    """Return a method without the wrapper that torch puts around ``step`` in each class."""
    while getattr(method, "__code__", None) is _PROFILER:
        method = method.__wrapped__
    return method


def has_plain_statistics(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Whether all statistics of a parameter are numbers, or tensors that `clear_pruned` zeroes."""
    statistics = _list_statistics(optimizer, parameter)
    return all(_is_plain(value, parameter.shape) for value in statistics)


def mask_tensors(optimizer: Optimizer, tensors: Sequence[PrunedTensor]) -> None:
    """Zero pruned weights, and their statistics as `clear_pruned` does; restart LBFGS."""
    clear_pruned(optimizer, tensors, weights=[(tensor.mask, tensor.weights) for tensor in tensors])
    forget_directions(optimizer)


def clear_pruned(
    optimizer: Optimizer,
    tensors: Sequence[PrunedTensor],
    weights: Sequence[tuple[Mask, Tensor]] = (),
) -> None:
    """Zero the statistics of pruned weights, where a statistic has a value for each weight.

    Tensors of other shapes stay as they are, and so do whole numbers: in the codes of an 8-bit
    optimizer, 0 does not stand for zero. A tensor of another class, or in eight bits, is zeroed by
    its own ``copy_``, or stays as it is.

    Args:
        optimizer: The optimizer.
        tensors: The tensors.
        weights: Masks with weights that are zeroed, too.
    """
    plain = list(weights)
    for tensor in tensors:
        mask = tensor.mask
        for value in _list_statistics(optimizer, tensor.parameter):
            if _is_plain(value, mask.shape):
                plain.append((mask, local_part(value)))
            elif value.shape == mask.shape and value.is_floating_point():
                _clear_foreign(value, mask)
    MaskSet().apply([mask for mask, _ in plain], [value for _, value in plain])


def _list_statistics(optimizer: Optimizer, parameter: nn.Parameter) -> list[Tensor]:
    """Return the local parts of all statistics that are more than a number."""
    found = optimizer.state.get(parameter, {}).values()
    tensors = [value for value in found if isinstance(value, Tensor) and value.ndim]
    return [local_part(value) if is_sharded(value) else value for value in tensors]


def _is_plain(value: Tensor, shape: torch.Size) -> bool:
    """Whether a tensor of torch's own class holds a number of 16 bits or more for each weight."""
    is_whole = type(value) in _PLAIN and value.layout == torch.strided and value.shape == shape
    return is_whole and value.is_floating_point() and value.dtype.itemsize > 1


@torch.no_grad()
def _clear_foreign(value: Tensor, mask: Mask) -> None:
    """Zero a tensor by its own ``copy_``, unless that raises or does not leave zeros."""
    with suppress(Exception):  # of any kind: the class is not ours, and the statistic may stay
        before = _read_dense(value)
        cleared = before.clone()
        mask.apply(cleared)
        value.copy_(cleared)
        if _read_dense(value)[~mask.kept].any():
            value.copy_(before)


def _read_dense(value: Tensor) -> Tensor:
    """Return the numbers that a tensor of any class stands for."""
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    return torch.empty(value.shape, dtype=dtype, device=value.device).copy_(value)


def forget_directions(optimizer: Optimizer) -> None:
    """Restart LBFGS, which holds directions of pruned weights; do nothing to other optimizers."""
    if isinstance(optimizer, torch.optim.LBFGS):
        for state in optimizer.state.values():
            state["n_iter"] = 0

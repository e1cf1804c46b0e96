"""Mixtures of experts: fused matrices of all experts in one parameter, and their routers."""

from collections.abc import Iterable
from itertools import chain

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_prune.models.names import Descent

LAYERS = (nn.Linear, _ConvNd, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""Layers of torch; all parameters of them that are named ``weight`` are matrices or kernels."""

_EXPERTS, _GATES = "experts", ("gate", "gating", "wg")
_SIZES = (("in_features", "out_features"), ("input_size", "output_size"))


def is_fused(parameter: Tensor, owner: nn.Module, descent: Descent) -> bool:
    """Whether a parameter holds a matrix for each expert: ``(experts, ..., rows, columns)``.

    A batched or grouped multiplication reads the parameter. Three signs are needed. It has three or
    more axes, and the first and the last two of them are larger than 1. Its module is no layer of
    torch. A module around it has ``experts`` in the name or class, or the module counts experts in
    an attribute, such as ``num_experts``, which equals the first axis.

    Args:
        parameter: The parameter; it has a shape.
        owner: The module that the parameter belongs to.
        descent: The way from the model to the parameter.
    """
    if isinstance(owner, LAYERS) or "bias" in descent[-1][1] or parameter.ndim < 3:
        return False
    if min(parameter.shape[0], *parameter.shape[-2:]) < 2:
        return False
    names = chain.from_iterable((type(module).__name__, name) for module, name in descent)
    return _mentions_experts(list(names)[:-1]) or _counts_experts(owner, parameter.shape[0])


def is_router(descent: Descent) -> bool:
    """Whether a parameter is in a router, beside the experts that it chooses.

    A router, or a gate, is a child or a parameter of a module that also holds experts. Its name or
    class contains ``router``, or its name is ``gate``, ``gating``, ``wg`` or contains ``expert``
    and ends in ``_gate``, as does the gate of a shared expert.

    Args:
        descent: The way from the model to the parameter.
    """
    children = [*(type(module).__name__ for module, _ in descent[1:]), ""]
    return any(
        _is_named_as_router(name, kind) and _holds_experts(module)
        for (module, name), kind in zip(descent, children, strict=True)
    )


def find_input_axis(parameter: Tensor, owner: nn.Module) -> int | None:
    """Return the axis of the inputs of fused experts: 1 or 2; None if nothing shows which.

    It is the last axis for ``(experts, output, input)``, and the middle axis for
    ``(experts, input, output)``. An attribute ``is_transposed`` tells, as in Transformers, or the
    sizes in the attributes of the module. So do the shapes of a ``gate_up_proj``, which has twice
    as many outputs as the ``down_proj`` has inputs.

    Args:
        parameter: The fused experts.
        owner: The module that holds them.
    """
    if parameter.ndim != 3:
        return None
    is_transposed = getattr(owner, "is_transposed", None)
    if isinstance(is_transposed, bool):
        return 1 if is_transposed else 2
    shape = list(parameter.shape[1:])
    for inputs, outputs in _SIZES:
        sizes = [getattr(owner, inputs, 0), getattr(owner, outputs, 0)]
        if sizes[0] != sizes[1] and shape in (sizes, sizes[::-1]):
            return 1 + shape.index(sizes[0])
    up, down = (owner._parameters.get(name) for name in ("gate_up_proj", "down_proj"))
    if up is None or down is None or not (parameter is up or parameter is down):
        return None
    return _compare_shapes(tuple(up.shape), tuple(down.shape))


def stack_rows(experts: Tensor, input_axis: int) -> Tensor:
    """Return fused experts as one matrix, ``(experts * outputs, inputs)``.

    Args:
        experts: Three axes, the experts first.
        input_axis: The axis of the inputs, 1 or 2.

    Examples:
        >>> import torch
        >>> experts = torch.arange(8).view(2, 2, 2)
        >>> stack_rows(experts, 2).tolist()
        [[0, 1], [2, 3], [4, 5], [6, 7]]
        >>> stack_rows(experts, 1).tolist()
        [[0, 2], [1, 3], [4, 6], [5, 7]]
    """
    return experts.movedim(input_axis, 2).flatten(0, 1)


def unstack_rows(rows: Tensor, experts: int, input_axis: int) -> Tensor:
    """Return the fused experts of a matrix that `stack_rows` has made."""
    return rows.view(experts, -1, rows.shape[1]).movedim(2, input_axis)


def _compare_shapes(up: tuple[int, ...], down: tuple[int, ...]) -> int | None:
    """Return the axis of the inputs from the shapes of ``gate_up_proj`` and ``down_proj``."""
    if len(up) != 3 or len(down) != 3:
        return None
    if up[2] == down[1] and up[1] == 2 * down[2]:
        return 2
    if up[1] == down[2] and up[2] == 2 * down[1]:
        return 1
    return None


def _is_named_as_router(name: str, kind: str) -> bool:
    name = name.lower()
    is_gate = name in _GATES or ("expert" in name and name.endswith("_gate"))
    return is_gate or "router" in name or "router" in kind.lower()


def _holds_experts(module: nn.Module) -> bool:
    """Whether a module has a child with experts, or holds fused experts itself."""
    children = ((name, type(child).__name__) for name, child in module.named_children())
    return _mentions_experts(chain.from_iterable(children)) or any(
        is_fused(parameter, module, [(module, name)])
        for name, parameter in module._parameters.items()
        if parameter is not None
    )


def _mentions_experts(names: Iterable[str]) -> bool:
    return any(_EXPERTS in name.lower() for name in names)


def _counts_experts(owner: nn.Module, number: int) -> bool:
    """Whether an attribute of a module names a number of experts."""
    return any(
        "expert" in name and value == number and type(value) is int
        for name, value in vars(owner).items()
    )

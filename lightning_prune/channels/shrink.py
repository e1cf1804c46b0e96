"""Modules without their zero channels: made, checked, saved and loaded."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.channels.attention import slim_attention
from lightning_prune.channels.coupling import ChannelPlace, CoupledChannels, Coupling, couple
from lightning_prune.channels.removal import (
    Removal,
    Setting,
    Smaller,
    find_numbers,
    find_removed,
    propose_settings,
    put_tensors,
    remove_channels,
    set_numbers,
)
from lightning_prune.models.calls import make_call
from lightning_prune.models.comparison import Reference
from lightning_prune.models.compiled import copy_module
from lightning_prune.models.errors import describe_error
from lightning_prune.models.names import named_tensors, plain_name
from lightning_prune.models.progress import show_progress

TOLERANCE = 1e-5
_BATCHES = 3


@check_arguments
@show_progress()
def shrink(module: Smaller, example: Any = None) -> Smaller:
    r"""Return a copy of a module without the channels that are zero wherever they lie.

    A channel is removed if all that is stored for it is 0: the row that makes it, its bias, the
    scale and shift of its normalization and the columns that read it, as `ChannelPattern` leaves
    them. Before the copy is returned, its outputs are compared with those of the module on random
    batches, in evaluation and in training mode (without dropout):

    .. math:: \max |y' - y| \le 10^{-5} \max |y|

    The copy is of the same class and can be trained, compiled, exported and pruned again. Since
    its shapes are new, save it by `shrunk_state` or by ``torch.export.save``.

    Args:
        module: The pruned module; left as it is.
        example: The arguments of ``forward``: a tensor, a tuple of arguments or a dict of named
            ones; by default ``module.example_input_array``.

    Raises:
        ValueError: If there is no example, or the module cannot be traced with it.
        RuntimeError: If the copy computes something else; the error names the channels to blame.

    Examples:
        >>> module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with torch.no_grad():
        ...     for zero in (module[0].weight[1], module[0].bias[1], module[2].weight[:, 1]):
        ...         _ = zero.zero_()
        >>> shrink(module, torch.randn(8, 4))[0]
        Linear(in_features=4, out_features=2, bias=True)
    """
    call = make_call(module, example)
    coupling = couple(module, call)
    removal = _find_zero_channels(module, coupling)
    reference = Reference(module, call, _BATCHES)
    smaller, problems = _try_removal(module, reference, coupling, removal)
    if smaller is None:
        raise RuntimeError(
            "need a module that computes the same without its zero channels, got "
            + "; ".join(f"'{coupling.groups[i].producers[0]}' ({why})" for i, why in problems)
        )
    return smaller


def find_unremovable(
    module: nn.Module, example: Any, coupling: Coupling, candidates: Sequence[int]
) -> dict[int, str]:
    """Try on copies whether channels can be removed.

    Args:
        module: Left as it is; its channels need not be zero.
        example: The arguments of ``forward``.
        coupling: The channels of the module.
        candidates: Indices of the groups to try.

    Returns:
        For the index of each group that must stay dense, the reason.
    """
    removal = {index: _choose_channel(coupling.groups[index]) for index in candidates}
    masked = copy_module(module)
    tensors = named_tensors(masked)
    with torch.no_grad():
        for index, gone in removal.items():
            for part in coupling.groups[index].places:
                if isinstance(tensors[part.name], nn.Parameter):
                    _rows(tensors[part.name], part)[find_removed(part, gone)] = 0.0
    reference = Reference(masked, make_call(module, example), 1)
    _, problems = _try_removal(masked, reference, coupling, removal)
    return dict(problems)


@check_arguments
def shrunk_state(module: nn.Module) -> dict[str, Any]:
    """Return the weights of a module with all that `adopt` needs to load them into a dense module.

    It holds tensors, numbers and strings, so that it loads with ``weights_only=True``.
    """
    return {
        "state_dict": module.state_dict(),
        "shrunk_attributes": {
            plain_name(name): numbers
            for name, child in module.named_modules()
            if any(True for _ in child.parameters()) and (numbers := find_numbers(child))
        },
    }


@check_arguments
def adopt(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a module the shapes and the weights of a shrunk one of the same class.

    Args:
        module: A new instance, as its constructor makes it.
        state: The result of `shrunk_state`.

    Raises:
        ValueError: If the weights are those of another architecture.
    """
    tensors = named_tensors(module)
    weights = {plain_name(name): tensor for name, tensor in state["state_dict"].items()}
    persistent = {plain_name(name) for name in module.state_dict()}
    if foreign := sorted(set(weights) ^ persistent):
        raise ValueError(
            "need the state of a module of the same class, got one that differs in "
            + ", ".join(f"'{name}'" for name in foreign[:6])
        )
    shapes = {
        name: tensors[name].new_empty(weight.shape)
        for name, weight in weights.items()
        if name in tensors and tensors[name].shape != weight.shape
    }
    put_tensors(module, shapes)
    slim_attention(module)
    settings = [
        Setting(name, attribute, value)
        for name, numbers in state["shrunk_attributes"].items()
        for attribute, value in numbers.items()
    ]
    set_numbers(module, settings)
    module.load_state_dict(
        {raw: weights[plain_name(raw)] for raw in module.state_dict()}, strict=True
    )


def _find_zero_channels(module: nn.Module, coupling: Coupling) -> Removal:
    """Return the channels that are zero wherever they lie; of each group at least one stays."""
    tensors = named_tensors(module)
    removal: dict[int, Tensor] = {}
    for index, group in enumerate(coupling.groups):
        if group.why_dense is not None:
            continue
        gone = torch.ones(group.size, dtype=torch.bool)
        for part in group.places:
            if isinstance(tensors[part.name], nn.Parameter):
                rows = _rows(tensors[part.name], part)
                alive = (rows != 0).reshape(len(rows), -1).any(1).cpu()
                gone[part.channel_of_index[(part.channel_of_index >= 0) & alive]] = False
        if gone.all():
            gone[0] = False
        if gone.any():
            removal[index] = gone
    return removal


def _choose_channel(group: CoupledChannels) -> Tensor:
    """Return that a single channel goes, in the middle, so that no end is special."""
    gone = torch.zeros(group.size, dtype=torch.bool)
    gone[group.size // 2] = True
    return gone


def _try_removal(
    module: Smaller, reference: Reference, coupling: Coupling, removal: Removal
) -> tuple[Smaller | None, list[tuple[int, str]]]:
    """Remove channels and compare outputs; on a difference, try each half of the groups.

    Returns:
        The smaller module, or None and the groups to blame with reasons.
    """
    if not removal:
        return copy_module(module), []
    smaller, why = _try_settings(module, reference, coupling, removal)
    if smaller is not None:
        return smaller, []
    indices = list(removal)
    if len(indices) == 1:
        return None, [(indices[0], why)]
    problems: list[tuple[int, str]] = []
    for half in (indices[: len(indices) // 2], indices[len(indices) // 2 :]):
        problems += _try_removal(module, reference, coupling, {i: removal[i] for i in half})[1]
    return None, problems or [(index, why) for index in indices]


def _try_settings(
    module: Smaller, reference: Reference, coupling: Coupling, removal: Removal
) -> tuple[Smaller | None, str]:
    """Return the smaller module, or None and why its outputs are not those of the module."""
    why = ""
    for settings in propose_settings(module, coupling, removal):
        try:
            smaller = remove_channels(module, coupling, removal, settings)
            difference = reference.difference(smaller)
        except Exception as error:  # of the model's own code
            why = why or f"forward fails without it: {describe_error(error)}"
            continue
        if difference <= TOLERANCE:
            return smaller, ""
        why = why or f"outputs differ by {difference:.1e} without it"
    return None, why


def _rows(tensor: Tensor, part: ChannelPlace) -> Tensor:
    return tensor.detach().movedim(part.axis, 0)

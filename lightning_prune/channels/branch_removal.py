"""Modules without some residual branches: made and checked."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from lightning_prune.channels.absent import put_absences
from lightning_prune.channels.branches import Branch, find_branches
from lightning_prune.channels.removal import Smaller
from lightning_prune.channels.trial import TOLERANCE
from lightning_prune.models.calls import Call
from lightning_prune.models.comparison import Reference
from lightning_prune.models.compiled import copy_module
from lightning_prune.models.errors import describe_error
from lightning_prune.models.generic_weights import fill_with_generic_weights
from lightning_prune.models.names import named_parameters


def remove_branches(module: Smaller, branches: Iterable[Branch]) -> Smaller:
    """Return a copy without some branches: modules without weights take their places.

    Args:
        module: Left as it is.
        branches: The branches that go.
    """
    smaller = copy_module(module)
    for branch in branches:
        put_absences(smaller, branch.absences)
    return smaller


def find_unremovable_branches(
    module: nn.Module, call: Call, branches: Sequence[Branch]
) -> dict[int, str]:
    """Try on copies with generic weights whether branches can be left out.

    Args:
        module: Left as it is; its branches need not be zero.
        call: The arguments of ``forward``.
        branches: The branches.

    Returns:
        For the index of each branch that must stay, the reason. The others can be left out
        together.
    """
    reasons = {index: why for index, b in enumerate(branches) if (why := b.why_dense)}
    free = [index for index in range(len(branches)) if index not in reasons]
    generic = copy_module(module)
    fill_with_generic_weights(generic)
    if _find_difference(generic, call, [branches[index] for index in free]) is None:
        return reasons
    accepted: list[int] = []
    for index in free:
        together = [branches[each] for each in (*accepted, index)]
        why = _find_difference(generic, call, together)
        if why is None:
            accepted.append(index)
        else:
            reasons[index] = why
    return reasons


def leave_out_zero_branches(
    module: Smaller, call: Call, batches: int
) -> tuple[Smaller, dict[str, str]]:
    """Return a copy without the branches all of whose parameters are zero.

    Args:
        module: Left as it is.
        call: The arguments of ``forward``.
        batches: The number of batches on which the outputs are compared.

    Returns:
        The copy, or the module itself if no branch can be left out, and the reasons why branches of
        zeros stay, by the name of a weight.
    """
    parameters = named_parameters(module)
    if not _has_zero_layer(parameters):
        return module, {}
    branches = [
        branch
        for branch in find_branches(module, call)
        if not any(bool(parameters[name].count_nonzero()) for name in branch.parameters)
    ]
    reasons = find_unremovable_branches(module, call, branches)
    gone = [branch for index, branch in enumerate(branches) if index not in reasons]
    left = {branches[index].parameters[0]: reason for index, reason in reasons.items()}
    if not gone:
        return module, left
    smaller = remove_branches(module, gone)
    if Reference(module, call, batches).difference(smaller, limit=TOLERANCE) > TOLERANCE:
        return module, left | {each.parameters[0]: "the outputs differ" for each in gone}
    return smaller, left


def _has_zero_layer(parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether a matrix or a kernel has no weight but zeros, as each branch of zeros has."""
    return any(
        parameter.ndim > 1 and not bool(parameter.count_nonzero())
        for parameter in parameters.values()
    )


def _find_difference(module: nn.Module, call: Call, branches: Sequence[Branch]) -> str | None:
    """Return why outputs differ if zero branches are left out; None if they are the same."""
    if not branches:
        return None
    zeroed = copy_module(module)
    parameters = named_parameters(zeroed)
    with torch.no_grad():
        for branch in branches:
            for name in branch.parameters:
                parameters[name].zero_()
    try:
        reference = Reference(zeroed, call, 1)
        difference = reference.difference(remove_branches(zeroed, branches), limit=TOLERANCE)
    except Exception as error:  # of the model's own code
        return f"without it, {describe_error(error)}"
    return None if difference <= TOLERANCE else "the outputs differ without it"

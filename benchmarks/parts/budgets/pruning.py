"""A network that is pruned under a budget, and the same network with the next atom."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_prune import (
    Allocation,
    Budget,
    ChannelPattern,
    ERKAllocation,
    GlobalAllocation,
    OneShotSchedule,
    Pattern,
    Pruner,
    Schedule,
    UniformAllocation,
    UnstructuredPattern,
    shrink,
)

STEPS = 3  # on the way to the budget


@dataclass(frozen=True, kw_only=True)
class Form:
    """What is pruned, and where.

    Args:
        pattern: The pattern.
        allocation: The allocation.
    """

    pattern: Pattern
    allocation: Allocation

    @property
    def removes(self) -> bool:
        """Whether channels are pruned, which `shrink` removes."""
        return self.pattern.couples_tensors


FORMS: Mapping[str, Form] = {
    "weights, ERK": Form(pattern=UnstructuredPattern(), allocation=ERKAllocation()),
    "weights, global": Form(pattern=UnstructuredPattern(), allocation=GlobalAllocation()),
    "channels, uniform": Form(
        pattern=ChannelPattern(round_to=8, scope="all"), allocation=UniformAllocation()
    ),
}


def build_as_trained(build: Callable[[float], nn.Module], scale: float) -> nn.Module:
    """Return a network in which no parameter or statistic is zero, and no two are equal.

    A bias of 0 would not be counted. A sparse file does not hold a mean of 0, and an ONNX file
    holds equal parameters once.
    """
    torch.manual_seed(0)
    model = build(scale).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor += 0.001 * torch.randn_like(tensor)
    return model


def prune(
    dense: nn.Module,
    example: Tensor,
    form: Form,
    *,
    steps: int = 1,
    schedule: Schedule | None = None,
    sparsity: float | dict[str, float | None] | None = None,
    budget: Budget | None = None,
) -> tuple[nn.Module, Pruner]:
    """Return a pruned copy of a network, and the engine that pruned it; no weight is trained."""
    model = copy.deepcopy(dense)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(
        sparsity=sparsity,
        budget=budget,
        pattern=form.pattern,
        allocation=form.allocation,
        schedule=schedule,
    )
    pruner.attach(model, optimizer, steps=steps, example=example)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()
    return model.eval(), pruner


def add_next_atom(dense: nn.Module, example: Tensor, form: Form, pruner: Pruner) -> nn.Module:
    """Return a copy of the dense network that keeps one atom more than the engine does.

    No budget is solved for it. Weights are pruned to the plain sparsity of one weight more, by the
    same allocation. For channels, the sparsity of each group is written down. The uniform
    allocation next adds a step of ``round_to`` to the group whose sparsity is the highest when the
    step comes; the earlier group comes first.
    """
    at_once = OneShotSchedule(end=0)
    if form.removes:
        targets = _list_next_targets(pruner)
        model, _ = prune(dense, example, form, schedule=at_once, sparsity=targets)
        return shrink(model, example)
    total = sum(group.total for group in pruner.groups)
    kept = sum(group.atoms_kept for group in pruner.groups)
    sparsity = 1 - (kept + 1) / total
    model, _ = prune(dense, example, form, schedule=at_once, sparsity=sparsity)
    return model


def _list_next_targets(pruner: Pruner) -> dict[str, float | None]:
    """Return the sparsity of each weight that makes channels; the next group keeps a step more."""
    steps = {}
    for group in pruner.groups:
        more = (n for n in range(1, group.total + 1) if group.round_keep(n) > group.atoms_kept)
        due = next(more, None)
        if due is not None:
            steps[group.name] = (1 - (due - 0.5) / group.total, group.round_keep(due))
    following = max(steps, key=lambda name: steps[name][0])
    kept = {group.name: group.atoms_kept for group in pruner.groups}
    kept[following] = steps[following][1]
    return {
        producer: 1 - kept[group.name] / group.total
        for group in pruner.groups
        for producer in group.producers
    }

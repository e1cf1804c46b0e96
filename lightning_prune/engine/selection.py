"""Selection: the tensors and groups of a model that a recipe prunes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_prune.engine.block_groups import BlockGroup, find_atoms
from lightning_prune.engine.candidates import (
    Selection,
    count_weights,
    find_candidates,
)
from lightning_prune.engine.groups import Group
from lightning_prune.engine.weight_groups import WeightGroup
from lightning_prune.models.sharding import refuse_flat_parameters, reshard
from lightning_prune.recipe.allocations import Allocation
from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.targets import format_targets
from lightning_prune.recipe.tensor import PrunedTensor

_Answer = Allocation | Criterion | Pattern


def select(
    model: nn.Module, optimizers: Sequence[Optimizer], recipe: Recipe, example: Any
) -> Selection:
    """Choose the tensors and groups of a model, and check that the answers fit them.

    Args:
        model: The model.
        optimizers: The optimizers that train it.
        recipe: The answers.
        example: For channels, what ``forward`` takes; None for ``example_input_array``.

    Raises:
        ValueError: If a glob matches nothing, nothing can be pruned, an answer does not fit, FSDP1
            has flattened the parameters, or rows hold a tensor above a sparsity that no other
            tensor can make up for.
    """
    refuse_flat_parameters(model)
    reshard(model)
    if recipe.pattern.couples_tensors:
        selection = _select_coupled(model, optimizers, recipe, example)
    else:
        selection = select_tensors(model, optimizers, recipe.targets)
        groups = tuple(_make_group(tensor, recipe.pattern) for tensor in selection.tensors)
        selection = replace(selection, groups=groups)
    for tensor in selection.tensors:
        tensor.most = recipe.cap(tensor.sparsity)
        tensor.state_by_weight = recipe.chosen_criterion.state_by_weight
        if tensor.shard is not None:
            _refuse_shards(tensor.name, _answers_on_tensors(recipe))
    scored = [tensor for tensor in selection.tensors if tensor.is_scored]
    _refuse_misfits(scored, model, recipe)
    if not (recipe.budgets or recipe.chosen_allocation.shares_budget):
        _refuse_unreachable(selection.groups, recipe)
    if not selection.tensors and not selection.may_grow:
        raise ValueError(_explain_nothing(selection.dense))
    return selection


def select_tensors(
    module: nn.Module, optimizers: Sequence[Optimizer], sparsity: Mapping[str, float | None]
) -> Selection:
    """Choose the tensors to prune, without groups.

    By default those are the floating-point parameters that an optimizer trains, named ``*weight*``,
    with two or more dimensions, whose owners are neither embeddings nor normalizations; and fused
    experts. Adapters and routers are not among them, nor parameters whose zeros are not those of
    the weight that a parametrization or hook makes of them.

    The globs (``fnmatchcase``, of parameter or module names) choose among them, and the last glob
    that matches decides. A glob that matches none of them is tried against all parameters. A glob
    other than ``*`` also chooses weights that no optimizer trains.

    Args:
        module: The model.
        optimizers: The optimizers that train it.
        sparsity: Final sparsity, or None for dense, by glob.

    Raises:
        ValueError: If a glob matches nothing, or prunes parameters that are not floating-point.
    """
    found = find_candidates(module, optimizers, sparsity)
    waits = {
        each.name: each.why_unready or (None if each.is_named else each.why_untrained)
        for each in found
    }
    reasons = {each.name: each.why_dense or waits[each.name] for each in found}
    return Selection(
        names=tuple(reasons),
        tensors=tuple(each.make_tensor() for each in found if not reasons[each.name]),
        dense={name: why for name, why in reasons.items() if why},
        unready=frozenset(e.name for e in found if not e.why_dense and waits[e.name]),
        sizes=count_weights(found),
    )


def _make_group(tensor: PrunedTensor, pattern: Pattern) -> Group:
    """Return the group of a tensor; the weights of a whole tensor without bounds rank freely."""
    is_free = pattern.ranks_freely and not tensor.row_axes
    return (WeightGroup if is_free else BlockGroup)(members=(tensor,), pattern=pattern)


def _select_coupled(
    model: nn.Module, optimizers: Sequence[Optimizer], recipe: Recipe, example: Any
) -> Selection:
    if recipe.pattern.spans_branches:  # The imports below import tracing.
        from lightning_prune.engine.branch_selection import select_branches as choose
    else:
        from lightning_prune.engine.channel_selection import select_channels as choose

    return choose(model, optimizers, recipe.targets, recipe.pattern, example)


def _answers_on_tensors(recipe: Recipe) -> list[_Answer]:
    """Return the answers that meet the weights of a tensor."""
    answers: list[_Answer] = [
        recipe.chosen_allocation,
        recipe.chosen_criterion,
        recipe.pattern,
    ]
    if recipe.regrow is not None:
        answers += [recipe.regrow.criterion, recipe.regrow.first or recipe.chosen_criterion]
    return answers


def _refuse_shards(name: str, answers: Sequence[_Answer]) -> None:
    """Raise ValueError, naming the sharded tensor, if an answer needs whole tensors."""
    for answer in answers:
        if not answer.works_on_shards:
            raise ValueError(
                f"need whole parameters for {answer}, got the sharded '{name}' (FSDP2 or tensor "
                "parallelism); use DDP, or an allocation, a criterion and a pattern that declare "
                "works_on_shards, as all of this package do"
            )


def _refuse_misfits(tensors: Sequence[PrunedTensor], model: nn.Module, recipe: Recipe) -> None:
    """Raise ValueError, naming all tensors that do not fit and the lines that leave them dense."""

    def misfit(tensor: PrunedTensor) -> str | None:
        try:
            _refuse_unknown_axes(tensor, recipe.pattern)
            recipe.pattern.check_shape(tensor.shape)
            recipe.chosen_criterion.check_tensor(tensor, model)
            _refuse_untrained(tensor, recipe)
            _check_rows(tensor, recipe.pattern)
            find_atoms(tensor, recipe.pattern)  # raises if shards cut an atom
        except ValueError as error:
            return f"{error} in '{tensor.name}' of shape {tensor.shape}"
        return None

    misfits = {tensor.name: why for tensor in tensors if (why := misfit(tensor))}
    if misfits:
        lines = format_targets({**recipe.targets, **dict.fromkeys(misfits)})
        raise ValueError("; ".join(misfits.values()) + f"; to leave that dense, write\n{lines}")


def _check_rows(tensor: PrunedTensor, pattern: Pattern) -> None:
    """Raise ValueError if the pattern cannot keep a weight in each row, or shards cut rows."""
    for axis in tensor.row_axes or ():
        if not pattern.keeps_slices(axis):
            raise ValueError(
                f"need a pattern that keeps a weight at each index of axis {axis} (output axis "
                f"first), by whose norm the model divides, got {pattern}"
            )
    if tensor.shard is None or tensor.row_axes is None:
        return
    shard, is_free = tensor.shard.transpose(0, tensor.output_axis), pattern.ranks_freely
    others = set(range(len(shard.shape))) - set(tensor.row_axes)
    if any(map(shard.is_cut, others)) and (tensor.row_axes or not is_free):
        raise ValueError(
            "need rows that shards leave whole where the model divides by the norm of a row, got "
            "rows in parts (FSDP2 or tensor parallelism)"
        )


def _refuse_unreachable(groups: Sequence[Group], recipe: Recipe) -> None:
    """Raise ValueError, with the lines to write, if rows keep more of a tensor than is due."""
    held = [group for group in groups if not group.leaves_rows(group.sparsity)]
    if held:
        rows = ", ".join(
            f"sparsity={group.sparsity} for {group.total} atoms in {group.rows} rows in "
            f"'{group.name}'"
            for group in held
        )
        most = {
            group.name: math.floor(1e4 - group.rows / group.total * 1e4) / 1e4 for group in held
        }
        raise ValueError(
            f"need a sparsity that leaves an atom in each row, by whose norm the model divides, "
            f"got {rows}; write\n{format_targets({**recipe.targets, **most})}"
        )


def _refuse_unknown_axes(tensor: PrunedTensor, pattern: Pattern) -> None:
    """Raise ValueError if a pattern needs the input axis of fused experts, and none is known."""
    needs_axis = not (pattern.ranks_freely or pattern.couples_tensors)
    if needs_axis and tensor.is_fused and tensor.input_axis is None:
        raise ValueError(
            f"need experts with a known input axis for {pattern}, got a "
            f"{type(tensor.owner).__name__} without the attribute is_transposed (False for "
            "(experts, output, input), True for (experts, input, output))"
        )


def _refuse_untrained(tensor: PrunedTensor, recipe: Recipe) -> None:
    """Raise ValueError if no optimizer trains a tensor, and an answer needs the training."""
    if tensor.is_trained:
        return
    if recipe.chosen_criterion.reads_gradients:
        kind = type(recipe.chosen_criterion).__name__
        raise ValueError(f"need a trained weight for the gradients of {kind}, got a frozen weight")
    if recipe.regrow is not None:
        raise ValueError("need a trained weight for Regrow, got a frozen weight that stays 0")


def _explain_nothing(dense: Mapping[str, str]) -> str:
    """Return in words why there is no tensor."""
    reasons = _list_reasons(dense) or "no parameters"
    return f"need at least one prunable weight, got none: {reasons}"


def _list_reasons(dense: Mapping[str, str]) -> str:
    return ", ".join(f"'{name}' ({reason})" for name, reason in dense.items())

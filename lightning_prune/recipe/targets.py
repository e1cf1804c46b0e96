"""Whether the answers to the five questions are good ones, alone and together."""

from collections.abc import Mapping, Sequence

from torch import nn

from lightning_prune.engine.groups import PrunedTensor
from lightning_prune.engine.selection import as_yaml
from lightning_prune.recipe.allocations import Allocation, ERKAllocation, UniformAllocation
from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.patterns import NMPattern, Pattern
from lightning_prune.recipe.regrowth import Regrow

Answer = Allocation | Criterion | Pattern
SparsityTargets = float | Mapping[str, float | None]


def checked_targets(sparsity: SparsityTargets) -> dict[str, float | None]:
    """Return the final sparsity by glob.

    Raises:
        ValueError: If a sparsity is not a number in [0, 1].
    """
    if not isinstance(sparsity, Mapping):
        return {"*": _checked_target(sparsity, f"sparsity={sparsity!r}")}
    if not sparsity:
        raise ValueError("need at least one glob, got sparsity={}")
    return {
        glob: None
        if target is None
        else _checked_target(target, f"sparsity={{{glob!r}: {target!r}}}")
        for glob, target in sparsity.items()
    }


def _checked_target(target: object, shown: str) -> float:
    if isinstance(target, bool) or not isinstance(target, int | float):
        raise ValueError(f"need a number in [0, 1] as sparsity, got {shown}")
    if not 0 <= target <= 1:
        raise ValueError(f"need 0 <= sparsity <= 1, got {shown}")
    return float(target)


def default_allocation(pattern: Pattern) -> Allocation:
    """Return the allocation that suits a pattern."""
    uniform = pattern.couples_tensors or isinstance(pattern, NMPattern)
    return UniformAllocation() if uniform else ERKAllocation()


def refuse_shards(name: str, answers: Sequence[Answer]) -> None:
    """Raise ValueError, naming the sharded tensor, if an answer needs whole ones."""
    for answer in answers:
        if not answer.works_on_shards:
            raise ValueError(
                f"need whole parameters for {answer}, got the sharded '{name}' (FSDP2 or tensor "
                "parallelism); use DDP, or UniformAllocation, ERKAllocation or GlobalAllocation "
                "with MagnitudeCriterion, RandomCriterion or GradientCriterion and "
                "UnstructuredPattern()"
            )


def refuse_misfits(
    tensors: Sequence[PrunedTensor],
    model: nn.Module,
    targets: Mapping[str, float | None],
    criterion: Criterion,
    pattern: Pattern,
) -> None:
    """Raise ValueError, naming all tensors that do not fit and the lines that leave them dense."""

    def misfit(tensor: PrunedTensor) -> str | None:
        try:
            pattern.check_shape(tensor.shape)
            criterion.check_tensor(tensor, model)
        except ValueError as error:
            return f"{error} in '{tensor.name}' of shape {tensor.shape}"
        return None

    misfits = {tensor.name: why for tensor in tensors if (why := misfit(tensor))}
    if misfits:
        globs = "".join(f'\n  "{glob}": {as_yaml(t)}' for glob, t in targets.items())
        nulls = "".join(f'\n  "{name}": null' for name in misfits)
        raise ValueError(
            "; ".join(misfits.values()) + f"; to leave that dense, write\nsparsity:{globs}{nulls}"
        )


def nothing_to_prune(dense: Mapping[str, str]) -> str:
    """Return in words why there is no tensor."""
    reasons = ", ".join(f"'{name}' ({reason})" for name, reason in dense.items())
    return f"need at least one prunable weight, got none: {reasons or 'no parameters'}"


def refuse_clashes(
    allocation: Allocation, criterion: Criterion, pattern: Pattern, regrow: Regrow | None
) -> None:
    """Raise ValueError, naming the two, if two answers cannot work together."""
    if allocation.needs_unsigned_scores and criterion.signed:
        raise ValueError(
            f"need scores >= 0 for {type(allocation).__name__}, got "
            f"criterion={type(criterion).__name__}, whose scores can be negative"
        )
    if allocation.needs_single_tensors and pattern.couples_tensors:
        raise ValueError(
            f"need a pattern inside single tensors for {type(allocation).__name__}, got "
            f"pattern={type(pattern).__name__}; use UniformAllocation or GlobalAllocation"
        )
    if regrow is not None and pattern.couples_tensors:
        raise ValueError(
            f"need a pattern inside single tensors for {type(regrow).__name__}, got "
            f"pattern={type(pattern).__name__}; no gradient reaches a channel that is 0 everywhere"
        )

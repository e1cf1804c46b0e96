"""All answers together."""

from lightning_prune.recipe.allocations import Allocation, ERKAllocation, UniformAllocation
from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.patterns import NMPattern, Pattern
from lightning_prune.recipe.regrowth import Regrow


def default_allocation(pattern: Pattern) -> Allocation:
    """Return the allocation that suits a pattern."""
    uniform = pattern.couples_tensors or isinstance(pattern, NMPattern)
    return UniformAllocation() if uniform else ERKAllocation()


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

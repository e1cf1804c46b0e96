"""A kernel that chooses the best of each few values, on GPUs with Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_prune.tensors.blocks import enter_device
from lightning_prune.tensors.fused_bits import order_bits

_BLOCK = 1024
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def choose_best_of_groups(groups: Tensor, keep: int) -> Tensor:
    """Return the bool mask of the ``keep`` highest scores of each group.

    Args:
        groups: ``(groups, members)``, without gaps.
        keep: Number to keep in each group.
    """
    best = torch.empty_like(groups, dtype=torch.bool)
    members = groups.shape[1]
    with enter_device(groups.device):
        _choose_best[(triton.cdiv(max(len(groups), 1), _BLOCK),)](
            groups.detach().view(_INTEGERS[groups.element_size()]),
            best.view(torch.int8),
            len(groups),
            members=members,
            width=triton.next_power_of_2(members),
            keep=keep,
            block=_BLOCK,
        )
    return best


@triton.jit
def _order(bits):  # type: ignore[no-untyped-def]
    """Return whole numbers in the order of the scores with these bits; -0.0 is +0.0."""
    lowest: tl.constexpr = -(1 << (bits.dtype.primitive_bitwidth - 1))
    return order_bits(tl.where(bits == lowest, 0, bits))


@triton.jit  # type: ignore[untyped-decorator]
def _choose_best(  # type: ignore[no-untyped-def]
    scores,
    best,
    groups,
    members: tl.constexpr,
    width: tl.constexpr,
    keep: tl.constexpr,
    block: tl.constexpr,
):
    """Mark the scores that fewer than ``keep`` others of the group precede."""
    rows = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    columns = tl.arange(0, width)
    places = rows[:, None] * members + columns[None, :]
    is_inside = (rows < groups)[:, None] & (columns < members)[None, :]
    own = _order(tl.load(scores + places, mask=is_inside, other=0))
    better = tl.zeros([block, width], dtype=tl.int32)
    for other in tl.static_range(members):
        read = tl.load(scores + rows * members + other, mask=rows < groups, other=0)
        rival = _order(read)[:, None]
        is_earlier = (columns > other)[None, :]
        better += ((rival > own) | ((rival == own) & is_earlier)).to(tl.int32)
    tl.store(best + places, (better < keep).to(tl.int8), mask=is_inside)

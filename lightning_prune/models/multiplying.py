"""Which operations of torch multiply, by which arguments, and how often."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

# Which arguments an operation multiplies with each other.
_FACTORS: dict[Any, tuple[int, ...]] = {
    aten.mm: (0, 1),
    aten.bmm: (0, 1),
    aten.mv: (0, 1),
    aten.dot: (0, 1),
    aten.addmm: (1, 2),
    aten.addmv: (1, 2),
    aten.baddbmm: (1, 2),
    aten.convolution: (0, 1),
    aten._convolution: (0, 1),
    aten.mkldnn_rnn_layer: (0, 1, 2),
    aten._scaled_dot_product_flash_attention_for_cpu: (0, 1, 2),
    aten._scaled_dot_product_flash_attention: (0, 1, 2),
    aten._scaled_dot_product_efficient_attention: (0, 1, 2),
    aten._scaled_dot_product_cudnn_attention: (0, 1, 2),
}
# Operations that look up or move matrices, and multiply nothing.
_MOVING = {
    aten.cat,
    aten.copy_,
    aten.embedding,
    aten._embedding_bag,
    aten._embedding_bag_forward_only,
    aten.gather,
    aten.index,
    aten.index_put,
    aten.index_put_,
    aten.index_select,
    aten.native_group_norm,
    aten.native_layer_norm,
    aten.select_scatter,
    aten.slice_scatter,
    aten.stack,
    aten._fused_rms_norm,
}


def multiplies(packet: Any) -> bool:
    """Whether an operation is a product whose multiplications `count_macs` counts."""
    return packet in _FACTORS or packet in flop_registry


def moves(packet: Any) -> bool:
    """Whether an operation looks up or moves matrices, and multiplies nothing."""
    return packet in _MOVING


def find_factors(packet: Any, args: Sequence[Any]) -> list[Tensor]:
    """Return the arguments that an operation multiplies with each other."""
    return [args[index] for index in _FACTORS.get(packet, ())]


def count_macs(packet: Any, args: Sequence[Any], keywords: Mapping[str, Any], outputs: Any) -> int:
    """Return the multiplications of a product, with an addition each.

    Args:
        packet: The operation, in any overload.
        args: Positional arguments of the operation.
        keywords: Keyword arguments of the operation.
        outputs: The result.
    """
    if packet is aten.mkldnn_rnn_layer:
        steps = args[0].numel() // args[0].shape[-1]
        return int(steps * (args[1].numel() + args[2].numel()))
    if packet in (aten.mv, aten.addmv, aten.dot):
        return int(args[_FACTORS[packet][0]].numel())
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        packet = aten._scaled_dot_product_flash_attention
    formula: Callable[..., int] = flop_registry[packet]
    return formula(*args, **keywords, out_val=outputs) // 2

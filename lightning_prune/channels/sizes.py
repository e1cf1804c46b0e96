"""Sizes that depend on the values of tensors, such as the number of rows that a mask chooses."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

_SIZE = 24  # many numbers of equal pieces divide it
_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_IS_GUESS = "has a guessed size"


def guess_sizes(graph: fx.Graph) -> None:
    """Put numbers in the place of sizes that depend on values, in the results of a graph.

    Channels do not run along an axis of such a size, since weights have constant sizes. So the
    number does not matter where channels are followed along the other axes.

    Args:
        graph: The graph; only the descriptions of the results change.
    """
    for node in graph.nodes:
        value = node.meta.get("val")
        if any(_depends_on_values(leaf) for leaf in tree_leaves(value)):
            node.meta["val"] = tree_map_only((Tensor, *_NUMBERS), _guess, value)
            node.meta[_IS_GUESS] = True


def has_guessed_size(node: fx.Node) -> bool:
    """Whether a size of a result, or of an argument, is a guess of `guess_sizes`."""
    return any(each.meta.get(_IS_GUESS, False) for each in (node, *node.all_input_nodes))


def _depends_on_values(leaf: object) -> bool:
    sizes = leaf.shape if isinstance(leaf, Tensor) else (leaf,)
    return any(isinstance(size, _NUMBERS) for size in sizes)


def _guess(value: Any) -> Any:
    if isinstance(value, Tensor):
        shape = [_guess(size) for size in value.shape]
        return torch.empty(shape, dtype=value.dtype, device="meta")
    if not isinstance(value, _NUMBERS):
        return value
    expression = value.node.expr
    guessed = expression.subs(dict.fromkeys(expression.free_symbols, _SIZE))
    kinds = {torch.SymInt: int, torch.SymFloat: float, torch.SymBool: bool}
    return kinds[type(value)](guessed)

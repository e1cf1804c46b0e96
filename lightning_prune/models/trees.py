"""Nested tuples, lists and mappings with tensors in them: arguments and outputs of ``forward``."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

Tree = TypeVar("Tree")


def find_tensors(tree: object) -> list[Tensor]:
    """Return the tensors of a tree, in order.

    Examples:
        >>> find_tensors({"x": torch.ones(1), "more": (None, [torch.zeros(2)])})
        [tensor([1.]), tensor([0., 0.])]
    """
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def map_tensors(change: Callable[[Tensor], object], tree: Tree) -> Tree:
    """Return the tree with another tensor, or another value, in the place of each tensor."""
    mapped: Tree = tree_map_only(Tensor, change, tree)
    return mapped


def replace_tensors(tree: Tree, tensors: Iterable[Tensor]) -> Tree:
    """Return the tree with other tensors in the place of its own, in order.

    Examples:
        >>> replace_tensors([torch.ones(1), "mean"], [torch.zeros(2)])
        [tensor([0., 0.]), 'mean']
    """
    remaining = iter(tensors)
    replaced: Tree = tree_map(
        lambda leaf: next(remaining) if isinstance(leaf, Tensor) else leaf, tree
    )
    return replaced


def move_to_cpu(tree: Tree) -> Tree:
    """Return the tree with detached tensors on the CPU, floating-point tensors in float32."""

    def move(tensor: Tensor) -> Tensor:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to("cpu", dtype)

    return map_tensors(move, tree)


def name_leaves(tree: object, name: str = "") -> list[tuple[str, object]]:
    """Return the leaves of a tree in order, each with the way to it as a name.

    Args:
        tree: The tree.
        name: The name of the whole tree; empty if the names of the parts say enough.

    Examples:
        >>> name_leaves({"logits": 1, "states": (2, None)})
        [('logits', 1), ('states_0', 2), ('states_1', None)]
        >>> name_leaves([1], "output")
        [('output_0', 1)]
    """
    if isinstance(tree, Mapping):
        parts: Iterable[tuple[object, object]] = tree.items()
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        parts = zip(tree._fields, tree, strict=True)
    elif isinstance(tree, tuple | list):
        parts = enumerate(tree)
    elif (leaves := tree_leaves(tree)) == [tree] or not leaves:
        return [(name, tree)]
    else:  # of a class that torch knows how to take apart
        parts = enumerate(leaves)
    return [
        leaf
        for key, part in parts
        for leaf in name_leaves(part, f"{name}_{key}" if name else str(key))
    ]

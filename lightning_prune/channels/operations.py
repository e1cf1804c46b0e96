"""An operation of a model's graph: the name, the arguments, and the labels of the arguments."""

import operator
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

_MAY_RETURN_A_VIEW = ("contiguous", "reshape", "flatten", "to", "type_as", "dropout")


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredTensor:
    """A parameter or buffer of the model: it has labels for each axis, not for each entry.

    Args:
        name: The qualified name.
        axis_labels: For each axis, the label of each index.
        model_axes: For each axis, the same axis of the model's own tensor, which may be transposed.
        is_parameter: Whether it is a parameter. Pruned parameters are zero; buffers are not.
    """

    name: str
    axis_labels: tuple[Tensor, ...]
    model_axes: tuple[int, ...]
    is_parameter: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return tuple(len(labels) for labels in self.axis_labels)


Value = Tensor | StoredTensor | list[Any] | None
"""Labels of an activation's entries, a stored tensor, or a list of these; None if unknown."""


class Operation:
    """A node of the graph that calls an operation of torch.

    Args:
        node: The node.
        values: The values of the nodes before it.
        fed: The nodes that depend on the inputs of the graph.

    Attributes:
        is_fed: For each argument that is a tensor, whether it depends on the inputs of the graph.
    """

    def __init__(self, node: fx.Node, values: dict[fx.Node, Value], fed: Set[fx.Node]) -> None:
        assert isinstance(node.target, torch._ops.OpOverload)
        self.node = node
        self.target = node.target
        self.name = operation_name(node)
        self._names = [argument.name for argument in node.target._schema.arguments]
        self._options = {**dict(zip(self._names, node.args, strict=False)), **node.kwargs}
        self._values = values
        self._sources = tensor_arguments(node)
        self.inputs = [values[source] for source in self._sources]
        self.is_fed = [source in fed for source in self._sources]

    def __getitem__(self, key: str | int) -> Value:
        """Return the value of an argument that is a tensor or a list; None for any other."""
        argument = self._options.get(self._names[key] if isinstance(key, int) else key)
        if isinstance(argument, fx.Node):
            return self._values[argument]
        if isinstance(argument, list | tuple):
            return [self._values[v] if isinstance(v, fx.Node) else None for v in argument]
        return None

    def __contains__(self, name: str) -> bool:
        """Whether the operation has an argument of this name."""
        return name in self._names

    def option(self, name: str, default: Any = None) -> Any:
        """Return an argument that is not a tensor, or the default if it is missing or None."""
        argument = self._options.get(name)
        return default if argument is None else argument

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of the result, or of the first result."""
        result = self.node.meta["val"]
        return tuple((result[0] if isinstance(result, list | tuple) else result).shape)

    @property
    def dtypes(self) -> list[torch.dtype]:
        """The dtypes of the arguments that are tensors."""
        arguments = [source.meta["val"] for source in self._sources]
        return [argument.dtype for argument in arguments if isinstance(argument, Tensor)]

    @property
    def module(self) -> str | None:
        """The qualified name of the module whose code calls the operation."""
        stack = list(self.node.meta.get("nn_module_stack", {}).values())
        return stack[-1][0] if stack else None

    def find_parameters(self, keys: Sequence[str | int]) -> frozenset[str]:
        """Return the names of the parameters that arguments are, or are computed from alone."""
        is_fed = dict(zip(self._sources, self.is_fed, strict=True))
        names = [self._names[key] if isinstance(key, int) else key for key in keys]
        leaves = tree_leaves([self._options.get(name) for name in names])
        found: set[str] = set()
        waiting = [leaf for leaf in leaves if not is_fed.get(leaf, True)]
        for node in waiting:  # it grows on the way
            value = self._values.get(node)
            if isinstance(value, StoredTensor) and value.is_parameter:
                found.add(value.name)
            waiting += [each for each in node.all_input_nodes if each not in waiting]
        return frozenset(found)

    def run(self, operands: Sequence[Tensor]) -> Any:
        """Run the operation on other tensors, in the place of its tensor arguments."""
        leaves, structure = tree_flatten((self.node.args, self.node.kwargs))
        remaining = iter(operands)
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, fx.Node):
                leaves[index] = next(remaining) if _is_tensor(leaf) else leaf.meta["val"]
        args, kwargs = tree_unflatten(leaves, structure)
        return self.target(*args, **kwargs)


def operation_name(node: fx.Node) -> str:
    """Return the name of an operation in ATen; an in-place variant has the same name."""
    name = str(node.target).split(".")[1]
    return name.removesuffix("_") if writes_in_place(node) else name


def tensor_arguments(node: fx.Node) -> list[fx.Node]:
    """Return the arguments that are tensors or lists of tensors, in order, with repetitions."""
    leaves = tree_leaves((node.args, node.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, fx.Node) and _is_tensor(leaf)]


def writes_in_place(node: fx.Node) -> bool:
    """Whether an operation changes its first argument."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    first = next(iter(node.target._schema.arguments), None)
    return bool(first and first.alias_info and first.alias_info.is_write)


def find_viewed(node: fx.Node) -> fx.Node | None:
    """Return the argument whose memory the result may share; None if it has memory of its own."""
    may_share = node.target is operator.getitem or (
        isinstance(node.target, torch._ops.OpOverload)
        and (
            any(result.alias_info for result in node.target._schema.returns)
            or operation_name(node) in _MAY_RETURN_A_VIEW
        )
    )
    source = node.args[0] if node.args else None
    return source if may_share and isinstance(source, fx.Node) else None


def label_nothing(node: fx.Node) -> Value:
    """Return labels for a node's result, which say that no entry belongs to a channel."""
    return _without_channels(node.meta.get("val"))


def reorder_axes(stored: StoredTensor, operation: Operation) -> StoredTensor:
    """Return a stored tensor with its axes in the order that a transposition gives them.

    The order is seen from a trial: a tensor whose axis i has the length i + 2 is transposed.
    """
    trial = torch.empty([axis + 2 for axis in range(len(stored.axis_labels))], device="cpu")
    order = [length - 2 for length in operation.run([trial]).shape]
    return replace(
        stored,
        axis_labels=tuple(stored.axis_labels[axis] for axis in order),
        model_axes=tuple(stored.model_axes[axis] for axis in order),
    )


def _without_channels(result: Any) -> Value:
    if isinstance(result, list | tuple):
        return [_without_channels(part) for part in result]
    if not isinstance(result, Tensor):
        return None
    return torch.zeros(result.shape, dtype=torch.long, device="cpu")


def _is_tensor(node: fx.Node) -> bool:
    """Whether the result of a node is a tensor or several."""
    return isinstance(node.meta.get("val"), Tensor | list | tuple)

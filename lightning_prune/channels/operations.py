"""A call in a model's graph: the operation, its arguments, and what is known of their entries."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """A parameter or buffer: it has labels for each of its axes, not for each entry.

    Args:
        name: Its qualified name.
        axes: The labels of each axis.
        order: Which axis of the tensor in the model each of them is.
        is_parameter: Whether it is a parameter, which is zero where it is pruned; buffers are not.
    """

    name: str
    axes: tuple[Tensor, ...]
    order: tuple[int, ...]
    is_parameter: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """How long its axes are."""
        return tuple(len(labels) for labels in self.axes)


Value = Tensor | Stored | list[Any] | None
"""Labels of an activation's entries, what is stored, or a list of these; None is not known."""


class Call:
    """An operation with its arguments: tensors as `Value`, everything else as it is.

    Args:
        node: The node of the graph.
        values: What is known of the nodes before it.
    """

    def __init__(self, node: fx.Node, values: dict[fx.Node, Value]) -> None:
        assert isinstance(node.target, torch._ops.OpOverload)
        self.node = node
        self.target = node.target
        self.name = name_of(node)
        self._names = [argument.name for argument in node.target._schema.arguments]
        self._options = {**dict(zip(self._names, node.args, strict=False)), **node.kwargs}
        self._values = values
        self._sources = tensor_sources(node)
        self.inputs = [values[source] for source in self._sources]

    def __getitem__(self, key: str | int) -> Value:
        """Return an argument that is a tensor or a list of them; None if it is neither."""
        value = self._options.get(self._names[key] if isinstance(key, int) else key)
        if isinstance(value, fx.Node):
            return self._values[value]
        if isinstance(value, list | tuple):
            return [self._values[v] if isinstance(v, fx.Node) else None for v in value]
        return None

    def __contains__(self, name: str) -> bool:
        """Whether the operation has an argument of this name."""
        return name in self._names

    def option(self, name: str, default: Any = None) -> Any:
        """Return an argument that is no tensor."""
        value = self._options.get(name)
        return default if value is None else value

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the result, or of the first of several."""
        value = self.node.meta["val"]
        return tuple((value[0] if isinstance(value, list | tuple) else value).shape)

    @property
    def types(self) -> list[torch.dtype]:
        """Those of the tensors among the arguments."""
        values = [source.meta["val"] for source in self._sources]
        return [value.dtype for value in values if isinstance(value, Tensor)]

    @property
    def module(self) -> str | None:
        """The qualified name of the module whose code makes the call."""
        stack = list(self.node.meta.get("nn_module_stack", {}).values())
        return stack[-1][0] if stack else None

    def run(self, operands: Sequence[Tensor]) -> Any:
        """Run the operation on other tensors in the place of its own."""
        replacements = iter(operands)

        def replaced(source: fx.Node) -> Any:
            return next(replacements) if _is_tensor(source) else source.meta["val"]

        args, kwargs = fx.map_arg((self.node.args, self.node.kwargs), replaced)
        return self.target(*args, **kwargs)


def tensor_sources(node: fx.Node) -> list[fx.Node]:
    """Return the nodes among the arguments that are tensors, in order, as often as they come."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), lambda source: found.append(source))
    return [source for source in found if _is_tensor(source)]


def name_of(node: fx.Node) -> str:
    """Return what an operation does, whether it does so in place or not."""
    name = str(node.target).split(".")[1]
    return name.removesuffix("_") if writes(node) else name


def writes(node: fx.Node) -> bool:
    """Whether an operation changes its first argument."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    first = next(iter(node.target._schema.arguments), None)
    return bool(first and first.alias_info and first.alias_info.is_write)


def viewed(node: fx.Node) -> fx.Node | None:
    """Return the node whose memory this one may share."""
    may_share = node.target is operator.getitem or (
        isinstance(node.target, torch._ops.OpOverload)
        and (
            any(result.alias_info for result in node.target._schema.returns)
            or name_of(node) in ("contiguous", "reshape", "flatten", "to", "type_as", "dropout")
        )
    )
    source = node.args[0] if node.args else None
    return source if may_share and isinstance(source, fx.Node) else None


def blank(node: fx.Node) -> Value:
    """Return that nothing of a node's result is a channel."""

    def of(value: Any) -> Value:
        if isinstance(value, list | tuple):
            return [of(part) for part in value]
        return torch.zeros(value.shape, dtype=torch.long) if isinstance(value, Tensor) else None

    return of(node.meta.get("val"))


def reordered(stored: Stored, call: Call) -> Stored:
    """Return what is stored with its axes in the order that the call gives them."""
    order = [
        size - 2 for size in call.run([torch.empty([i + 2 for i in range(len(stored.axes))])]).shape
    ]
    return replace(
        stored,
        axes=tuple(stored.axes[axis] for axis in order),
        order=tuple(stored.order[axis] for axis in order),
    )


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor | list | tuple)

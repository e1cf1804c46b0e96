"""The walk over a model's graph, which applies the rule of each operation to the labels."""

import operator
from collections.abc import Mapping, Set

import torch
from torch import Tensor, fx

from lightning_prune.channels.flow import Flow, Rule
from lightning_prune.channels.labels import expand_repeats, has_channels
from lightning_prune.channels.multiplications import find_multiplications
from lightning_prune.channels.operations import (
    Operation,
    StoredTensor,
    Value,
    find_viewed,
    label_nothing,
    operation_name,
    tensor_arguments,
    writes_in_place,
)
from lightning_prune.channels.rules import layers, moves, pointwise, products, reductions
from lightning_prune.channels.sizes import guess_sizes, has_guessed_size
from lightning_prune.models.progress import note_progress

_REPEATING = ("expand", "expand_as", "zeros", "ones", "full", "new_zeros", "new_ones", "new_full")


def merge_rules(*tables: Mapping[str, Rule]) -> dict[str, Rule]:
    """Return one table of all rules, by the name of the operation in ATen.

    Raises:
        ValueError: If an operation has two rules.
    """
    merged: dict[str, Rule] = {}
    for table in tables:
        if repeated := sorted(merged.keys() & table.keys()):
            raise ValueError(f"need one rule for each operation, got two for {repeated}")
        merged.update(table)
    return merged


RULES = merge_rules(layers.RULES, products.RULES, pointwise.RULES, moves.RULES, reductions.RULES)


def walk(
    flow: Flow, program: torch.export.ExportedProgram, stored: dict[str, StoredTensor]
) -> None:
    """Follow the channels through one graph, from its inputs to its outputs.

    Args:
        flow: The labels of the model; labels of channels that go together are joined.
        program: The graph; sizes that depend on values of tensors become numbers in it.
        stored: The model's parameters and buffers, by name.
    """
    guess_sizes(program.graph)
    flow.multiplications.clear()
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    outputs = set(signature.user_outputs)
    positions = {node: position for position, node in enumerate(program.graph.nodes)}
    needed = _find_needed(program)
    fed = _find_fed(program)
    values: dict[fx.Node, Value] = {}
    for node, position in positions.items():
        note_progress("following channels", position, len(positions))
        if node not in needed:
            values[node] = None
        elif node.op == "placeholder" and node.name in names:
            values[node] = stored[names[node.name]]
        elif node.op == "call_function":
            values[node] = _label_result(flow, node, values, fed)
            if writes_in_place(node):
                _relabel_written(flow, node, values, positions)
        elif node.op == "output":
            for source in node.all_input_nodes:
                if source.name in outputs:
                    flow.keep_dense(values[source], "network output")
        else:
            values[node] = label_nothing(node)


def _find_needed(program: torch.export.ExportedProgram) -> set[fx.Node]:
    """Return the nodes whose channels count.

    The outputs depend on their results, or they change a tensor in place, or they are part of a
    computation with parameters of its own. The model computes the latter also where it throws the
    results away, as a detector does with a head for training: so the shapes must fit. The others
    are thrown away, such as the mean of attention weights over heads.
    """
    nodes = list(program.graph.nodes)
    needed: set[fx.Node] = set()
    for node in reversed(nodes):
        if node.op == "output" or writes_in_place(node) or not needed.isdisjoint(node.users):
            needed.add(node)
    parameters = program.graph_signature.inputs_to_parameters
    idle: set[fx.Node] = set()
    for node in nodes:
        reads = any(each.name in parameters for each in node.all_input_nodes)
        if node not in needed and (reads or not idle.isdisjoint(node.all_input_nodes)):
            idle.add(node)
    for node in reversed(nodes):
        if not idle.isdisjoint(node.users):
            idle.add(node)
    return needed | idle


def _find_fed(program: torch.export.ExportedProgram) -> set[fx.Node]:
    """Return the nodes that depend on the inputs of the graph, not only on stored tensors."""
    inputs = set(program.graph_signature.user_inputs)
    fed: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.name in inputs or not fed.isdisjoint(node.all_input_nodes):
            fed.add(node)
    return fed


# -- results -------------------------------------------------------------------------------------


def _label_result(
    flow: Flow, node: fx.Node, values: dict[fx.Node, Value], fed: Set[fx.Node]
) -> Value:
    """Return the labels of a node's result."""
    if node.target is operator.getitem:
        return _select_result(flow, node, values)
    if not isinstance(node.target, torch._ops.OpOverload):
        name = getattr(node.target, "__name__", str(node.target))
        return _keep_arguments_dense(flow, node, values, name)
    operation = Operation(node, values, fed)
    flow.multiplications += find_multiplications(operation)
    if node.meta.get("val") is None:
        return None  # an operation without a result, such as the check of a shape
    is_repeating = operation.name in _REPEATING
    if not is_repeating and not any(_may_have_channels(value) for value in operation.inputs):
        return label_nothing(node)
    result = _apply_rule(flow, operation)
    if result is None:
        return _keep_arguments_dense(flow, node, values, operation.name)
    if not is_repeating:
        result = _expand_channels(result)
    results = node.meta["val"]
    if isinstance(result, Tensor) and isinstance(results, list | tuple):
        return [result, *[None] * (len(results) - 1)]
    return result


def _apply_rule(flow: Flow, operation: Operation) -> Value:
    """Return the labels of the result; None without a rule, or if a guessed size does not fit."""
    rule = _find_rule(operation)
    try:
        return rule(flow, operation) if rule else None
    except RuntimeError:
        if has_guessed_size(operation.node):
            return None
        raise


def _find_rule(operation: Operation) -> Rule | None:
    """Return the rule of an operation; torch itself marks the pointwise operations by a tag."""
    if operation.name in ("max", "min") and "other" in operation:
        return pointwise.pointwise
    found = RULES.get(operation.name)
    is_pointwise = torch.Tag.pointwise in operation.target.tags
    return found or (pointwise.pointwise if is_pointwise else None)


def _may_have_channels(value: Value) -> bool:
    """Whether entries of a value can belong to channels."""
    if isinstance(value, list):
        return any(_may_have_channels(part) for part in value)
    return isinstance(value, StoredTensor) or (isinstance(value, Tensor) and has_channels(value))


def _expand_channels(value: Value) -> Value:
    """Expand labels where they repeat; without channels the values themselves may differ there."""
    if isinstance(value, list):
        return [_expand_channels(part) for part in value]
    if not isinstance(value, Tensor):
        return value
    if has_channels(value):
        return expand_repeats(value)
    return torch.zeros(value.shape, dtype=torch.long, device="cpu")


def _keep_arguments_dense(
    flow: Flow, node: fx.Node, values: dict[fx.Node, Value], name: str
) -> Value:
    """Keep dense the channels that enter an operation without a rule."""
    for source in tensor_arguments(node):
        flow.keep_dense(values[source], f"passes through {name}")
    return label_nothing(node)


def _select_result(flow: Flow, node: fx.Node, values: dict[fx.Node, Value]) -> Value:
    """Return the labels of a selected result; if they are unknown, the channels stay dense."""
    source, position = node.args
    assert isinstance(source, fx.Node)
    assert isinstance(position, int)
    results = values[source]
    if not isinstance(results, list):
        return label_nothing(node)
    if results[position] is None:
        if node.users:
            flow.keep_dense(results, f"passes through {operation_name(source)}")
        return label_nothing(node)
    return results[position]  # type: ignore[no-any-return]


# -- operations in place -------------------------------------------------------------------------


def _relabel_written(
    flow: Flow, node: fx.Node, values: dict[fx.Node, Value], positions: dict[fx.Node, int]
) -> None:
    """Give the tensor that an operation has changed in place the labels of the result.

    Views of its memory have changed, too, and are not relabeled. If a view is used later, the
    channels stay dense.
    """
    target = _find_written(node)
    before, after = values[target], values[node]
    for other in _find_sharing(target):
        if other not in values:
            continue
        if _find_written(other) is target:
            values[other] = after
        elif any(positions[user] > positions[node] for user in other.users):
            for value in (before, values[other], after):
                flow.keep_dense(value, "is written through a view")


def _find_written(node: fx.Node) -> fx.Node:
    """Return the tensor that a chain of operations in place has changed; else the node itself."""
    while writes_in_place(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _find_sharing(node: fx.Node) -> list[fx.Node]:
    """Return all nodes that may share memory with a node, and the node."""
    while (base := find_viewed(node)) is not None:
        node = base
    found = [node]
    for sharing in found:  # it grows on the way
        found += [user for user in sharing.users if find_viewed(user) is sharing]
    return found

"""How channels run through a model: a walk over its graph, with a rule for each operation.

Each entry of an activation carries the label of the channel it belongs to (`_labels.Labels`); a
rule says which labels the entries of a result have, and joins those that must go together. What
an operation without a rule is given stays dense.
"""

import operator
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx

from lightning_prune.channels.flow import Flow
from lightning_prune.channels.labels import expand_repeats, has_channels
from lightning_prune.channels.operations import (
    Call,
    Stored,
    Value,
    blank,
    name_of,
    tensor_sources,
    viewed,
    writes,
)
from lightning_prune.channels.rules import layers as layer
from lightning_prune.channels.rules import moves as moves
from lightning_prune.channels.rules import pointwise as entry
from lightning_prune.channels.rules import products as product

Rule = Callable[[Flow, Call], Value]

_BY_RULE: dict[Rule, str] = {
    layer.linear: "linear",
    layer.addmm: "addmm",
    layer.convolution: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d "
    "convolution",
    layer.embedding: "embedding",
    layer.prelu: "prelu",
    layer.batch_norm: "batch_norm instance_norm _native_batch_norm_legit_functional "
    "_native_batch_norm_legit_no_training",
    layer.group_norm: "group_norm",
    layer.layer_norm: "layer_norm rms_norm",
    product.matmul: "mm bmm matmul",
    product.baddbmm: "baddbmm",
    product.einsum: "einsum",
    product.attention: "scaled_dot_product_attention",
    product.softmax: "softmax log_softmax _safe_softmax",
    entry.glu: "glu",
    entry.pointwise: "hardswish log_sigmoid multiply divide subtract absolute",
    moves.copy: "alias clone contiguous detach lift_fresh_copy to _to_copy type_as dropout "
    "feature_dropout native_dropout",
    moves.zeros: "zeros_like",
    moves.constant: "new_zeros new_ones new_empty new_full new_tensor",
    moves.reorder: "transpose t permute",
    moves.move: "movedim swapaxes swapdims unsqueeze squeeze expand expand_as repeat tile flip "
    "repeat_interleave pixel_unshuffle",
    moves.reshape: "view _unsafe_view reshape flatten unflatten view_as reshape_as",
    moves.unfold: "unfold",
    moves.roll: "roll",
    moves.pixel_shuffle: "pixel_shuffle",
    moves.channel_shuffle: "channel_shuffle",
    moves.slices: "slice narrow",
    moves.select: "select unbind",
    moves.index: "index index_select",
    moves.cat: "cat stack",
    moves.split: "split split_with_sizes chunk",
    moves.pad: "pad constant_pad_nd",
    moves.pool: "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    moves.reduce: "sum mean amax amin max min var std norm linalg_vector_norm prod logsumexp "
    "argmax argmin",
}
RULES = {name: rule for rule, names in _BY_RULE.items() for name in names.split()}
"""The rule of each operation, by its name in ATen; torch itself says what is pointwise."""
_EXPANDS = ("expand", "expand_as")


def walk(flow: Flow, program: torch.export.ExportedProgram, stored: dict[str, Stored]) -> None:
    """Follow the channels through one graph, from its inputs to its outputs.

    Args:
        flow: The labels of the model; those of what must go together are joined.
        program: The graph.
        stored: The model's parameters and buffers, by name.
    """
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    outputs = set(signature.user_outputs)
    order = {node: position for position, node in enumerate(program.graph.nodes)}
    values: dict[fx.Node, Value] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            name = names.get(node.name)
            values[node] = stored[name] if name else blank(node)
        elif node.op == "call_function":
            values[node] = _result(flow, node, values)
            if writes(node):
                _write(flow, node, values, order)
        elif node.op == "output":
            for source in node.all_input_nodes:
                if source.name in outputs:
                    flow.keep_dense(values[source], "network output")
        else:
            values[node] = blank(node)


def _result(flow: Flow, node: fx.Node, values: dict[fx.Node, Value]) -> Value:
    """Return the labels of one operation's result."""
    if node.target is operator.getitem:
        return _item(flow, node, values)
    if not any(flow.has_channels(values[source]) for source in tensor_sources(node)):
        is_expanded = isinstance(node.target, torch._ops.OpOverload) and name_of(node) in _EXPANDS
        return moves.move(flow, Call(node, values)) if is_expanded else blank(node)
    if node.meta.get("val") is None and isinstance(node.target, torch._ops.OpOverload):
        return None  # such as a check of a shape
    if not isinstance(node.target, torch._ops.OpOverload):
        return _opaque(flow, node, values, getattr(node.target, "__name__", str(node.target)))
    call = Call(node, values)
    rule = _rule(call)
    result = rule(flow, call) if rule else None
    if result is None:
        return _opaque(flow, node, values, call.name)
    result = _kept_apart(result, is_expanded=call.name in _EXPANDS)
    several = node.meta["val"]
    if isinstance(result, Tensor) and isinstance(several, list | tuple):
        return [result, *[None] * (len(several) - 1)]
    return result


def _kept_apart(value: Value, *, is_expanded: bool) -> Value:
    """Expand labels where they repeat, but not entries without channels, which may differ."""
    if isinstance(value, list):
        return [_kept_apart(part, is_expanded=is_expanded) for part in value]
    if not isinstance(value, Tensor) or is_expanded:
        return value
    return (
        expand_repeats(value) if has_channels(value) else torch.zeros(value.shape, dtype=torch.long)
    )


def _rule(call: Call) -> Rule | None:
    if call.name in ("max", "min") and "other" in call:
        return entry.pointwise
    found = RULES.get(call.name)
    return found or (entry.pointwise if torch.Tag.pointwise in call.target.tags else None)


def _opaque(flow: Flow, node: fx.Node, values: dict[fx.Node, Value], name: str) -> Value:
    """Keep dense what enters an operation that is not followed."""
    for source in tensor_sources(node):
        flow.keep_dense(values[source], f"passes through {name}")
    return blank(node)


def _item(flow: Flow, node: fx.Node, values: dict[fx.Node, Value]) -> Value:
    """Return one of several results; those beside the first are not followed."""
    source, position = node.args
    assert isinstance(source, fx.Node)
    assert isinstance(position, int)
    results = values[source]
    if not isinstance(results, list):
        return blank(node)
    if results[position] is None:
        if node.users:
            flow.keep_dense(results, f"passes through {name_of(source)}")
        return blank(node)
    return results[position]  # type: ignore[no-any-return]


def _write(
    flow: Flow, node: fx.Node, values: dict[fx.Node, Value], order: dict[fx.Node, int]
) -> None:
    """Let what an operation writes into have the labels of its result.

    What shares its memory and is used later would have to change with it, and stays dense.
    """
    target = _written(node)
    before, after = values[target], values[node]
    for other in _sharing(target):
        if other not in values:
            continue
        if _written(other) is target:
            values[other] = after
        elif any(order[user] > order[node] for user in other.users):
            for value in (before, values[other], after):
                flow.keep_dense(value, "written into through a view")


def _written(node: fx.Node) -> fx.Node:
    """Return the tensor that a node is after having been written into, any number of times."""
    while writes(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _sharing(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes that may share their memory with this one."""
    while (base := viewed(node)) is not None:
        node = base
    waiting = [node]
    while waiting:
        found = waiting.pop()
        yield found
        waiting += [user for user in found.users if viewed(user) is found]

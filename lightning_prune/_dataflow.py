"""How channels run through a model: every operation of its graph, as a rule on labels.

Each entry of an activation carries the label of the channel it belongs to (`_labels.Classes`), so
whatever only moves entries is run on the labels themselves. An operation without a rule keeps what
enters it dense.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from lightning_prune._labels import UNLABELLED, Classes

# fmt: off
_MOVES = frozenset((
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "permute",
    "transpose", "t", "movedim", "swapaxes", "swapdims", "unsqueeze", "squeeze", "expand",
    "expand_as", "select", "slice", "narrow", "unbind", "repeat", "repeat_interleave", "roll",
    "flip", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "unfold",
))
_RESHAPES = frozenset((
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "view_as", "reshape_as",
))
_COPIES = frozenset((
    "alias", "clone", "contiguous", "detach", "lift_fresh_copy", "to", "_to_copy", "type_as",
    "dropout", "feature_dropout",
))
_POINTWISE = frozenset((  # those that torch does not say so of
    "hardswish", "log_sigmoid", "multiply", "divide", "subtract", "absolute",
))
_REDUCTIONS = frozenset((
    "sum", "mean", "amax", "amin", "max", "min", "var", "std", "norm", "linalg_vector_norm",
    "prod", "logsumexp", "argmax", "argmin",
))
# fmt: on
_NOT_ZERO_OF_ZEROS = frozenset(["logsumexp", "argmax", "argmin"])
_SPATIAL = ("max_pool", "avg_pool", "adaptive_", "upsample_")
_NO_CHANNELS = "meets values that are no channels"
_PROBES = 7  # random values at which an operation is tried


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """A parameter or buffer: it has labels for each of its axes, not for each entry.

    Args:
        name: Its qualified name.
        axes: The labels of each axis.
        order: Which axis of the tensor in the model each of them is.
        is_parameter: Whether it is a parameter.
    """

    name: str
    axes: tuple[Tensor, ...]
    order: tuple[int, ...]
    is_parameter: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """An operation whose arguments may say how many channels there are.

    Args:
        module: The qualified name of the module whose code calls it.
        labels: For an axis that it takes or makes, the labels of each index, ``(size, some)``.
    """

    module: str
    labels: Tensor


Value = Tensor | Stored | list[Any] | None


class Dataflow:
    """Walks graphs and joins the labels of what must go together.

    Args:
        classes: Where labels are joined.
        stored: The model's parameters and buffers, by name.
    """

    def __init__(self, classes: Classes, stored: dict[str, Stored]) -> None:
        self.classes = classes
        self.stored = stored
        self.output_axes: dict[str, int] = {}
        """The axis along which each weight makes channels, by name."""
        self.cuts: list[Cut] = []
        self._splits: list[tuple[Tensor, tuple[int, ...]]] = []

    def walk(self, program: torch.export.ExportedProgram) -> None:
        """Follow the channels through one graph, from its inputs to its outputs."""
        signature = program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        outputs = set(signature.user_outputs)
        values: dict[fx.Node, Value] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder":
                name = names.get(node.name)
                values[node] = self.stored[name] if name else _blank(node)
            elif node.op == "call_function":
                values[node] = self._call(node, values)
                self._write(node, values)
            elif node.op == "output":
                for value in (values[n] for n in node.all_input_nodes if n.name in outputs):
                    self.classes.keep_dense(self._entries(value), "network output")

    def settle(self) -> None:
        """Make whole slices of what is cut into several axes, where nothing else has done so."""
        before = -1
        while before != (before := sum(self._settle(*split) for split in self._splits)):
            pass

    # -- one operation ---------------------------------------------------------------------------

    def _call(self, node: fx.Node, values: dict[fx.Node, Value]) -> Value:
        if node.target is operator.getitem:
            source, index = values[node.args[0]], node.args[1]  # type: ignore[index]
            return source[index] if isinstance(source, list) else _blank(node)  # type: ignore[index]
        if not isinstance(node.target, torch._ops.OpOverload):
            return _blank(node)
        name = _name(node)
        given = _Given(node, values)
        makes_nothing = node.meta.get("val") is None  # such as a check of a shape
        if makes_nothing or not any(self._has_channels(value) for value in given.inputs):
            return _blank(node)
        if name in ("transpose", "t", "permute") and isinstance(given[0], Stored):
            return _moved(given[0], node)
        rule = self._rule(node.target, name)
        result = rule(node, given) if rule else None
        if result is None:
            return self._opaque(node, given, f"passes through {name}")
        if isinstance(result, Tensor) and isinstance(node.meta["val"], list | tuple):
            return [result, *[None] * (len(node.meta["val"]) - 1)]
        return result

    def _write(self, node: fx.Node, values: dict[fx.Node, Value]) -> None:
        """Let what an operation writes into have the labels of its result."""
        if not _writes(node):
            return
        target: Any = node.args[0]
        values[target] = values[node]
        order = {other: index for index, other in enumerate(node.graph.nodes)}
        while (base := _viewed(target)) is not None:
            others = (user for user in base.users if user is not target)
            if any(order[user] > order[node] for user in others):
                for value in (values[base], values[node]):
                    self.classes.keep_dense(self._entries(value), "written into through a view")
            target = base

    def _rule(self, target: Any, name: str) -> "Callable[[fx.Node, _Given], Value] | None":
        named = {
            "linear": self._linear,
            "addmm": self._addmm,
            "mm": self._product,
            "bmm": self._product,
            "matmul": self._product,
            "scaled_dot_product_attention": self._attention,
            "batch_norm": self._batch_norm,
            "_native_batch_norm_legit_functional": self._batch_norm,
            "_native_batch_norm_legit_no_training": self._batch_norm,
            "instance_norm": self._batch_norm,
            "group_norm": self._group_norm,
            "layer_norm": self._layer_norm,
            "rms_norm": self._layer_norm,
            "softmax": self._softmax,
            "log_softmax": self._softmax,
            "embedding": self._embedding,
            "cat": self._cat,
            "stack": self._cat,
            "split": self._split,
            "split_with_sizes": self._split,
            "chunk": self._split,
            "pad": self._pad,
            "constant_pad_nd": self._pad,
            "index": self._index,
            "index_select": self._index,
            "glu": self._glu,
            "prelu": self._prelu,
            "native_dropout": self._copy,
        }
        if name in named:
            return named[name]
        if name.startswith("conv"):
            return self._convolution
        if name in _MOVES:
            return self._move
        if name in _COPIES:
            return self._copy
        if name in _REDUCTIONS:
            return self._reduce
        if name.startswith(_SPATIAL):
            return self._pool
        is_pointwise = torch.Tag.pointwise in target.tags or name in _POINTWISE
        return self._pointwise if is_pointwise else None

    def _opaque(self, node: fx.Node, given: "_Given", reason: str) -> Value:
        for value in given.inputs:
            for labels in value.axes if isinstance(value, Stored) else [self._entries(value)]:
                self.classes.keep_dense(labels, reason)
        return _blank(node)

    # -- layers ----------------------------------------------------------------------------------

    def _linear(self, node: fx.Node, given: "_Given") -> Value:
        return self._dense_layer(node, given["input"], given["weight"], given["bias"], 0)

    def _addmm(self, node: fx.Node, given: "_Given") -> Value:
        if given.options.get("alpha", 1) != 1 or given.options.get("beta", 1) != 1:
            return None
        return self._dense_layer(node, given["mat1"], given["mat2"], given["self"], 1)

    def _dense_layer(
        self, node: fx.Node, source: Value, weight: Value, bias: Value, output_axis: int
    ) -> Value:
        """Inputs times a stored matrix, whose outputs are along the given axis."""
        if not isinstance(weight, Stored) or len(weight.axes) != 2:
            return None
        rows = _along(self._entries(source), -1)
        self._read(rows, weight.axes[1 - output_axis])
        return self._made(node, weight, output_axis, -1, bias)

    def _convolution(self, node: fx.Node, given: "_Given") -> Value:
        weight, source = given["weight"], self._entries(given["input"])
        if not isinstance(weight, Stored):
            return None
        transposed = "transpose" in str(node.target) or given.options.get("transposed", False)
        groups = given.options.get("groups", 1)
        axis = source.ndim - len(weight.axes) + 1  # 0 without a batch
        rows = _along(source, axis)
        first, second = weight.axes[:2]
        if groups == 1:
            self._read(rows, first if transposed else second)
            return self._made(node, weight, int(transposed), axis, given["bias"])
        of_groups = rows.view(groups, len(rows) // groups, -1)
        if of_groups.shape[1] == 1:  # depthwise: a channel goes with all that is made of it
            self._read(of_groups.flatten(1), first.view(groups, -1))
            made = first.repeat_interleave(second.numel()) if transposed else first
        else:  # the same slot of every group goes, so that groups stay equal
            slots = of_groups.movedim(1, 0).flatten(1)
            if transposed:
                self._read(slots, first.view(groups, -1).T)
                made = second.repeat(groups)
            else:
                self._read(slots, second)
                self.classes.join_rows(first.view(groups, -1).T, "groups")
                made = first
        return self._made(node, weight, int(transposed), axis, given["bias"], made)

    def _read(self, rows: Tensor, inputs: Tensor) -> None:
        """Let a layer's input axis go with the channels that it reads, ``(channels, entries)``."""
        self.classes.join_rows(
            torch.cat([rows, inputs.view(len(rows), -1)], 1), "reads the network input"
        )

    def _made(
        self,
        node: fx.Node,
        weight: Stored,
        output_axis: int,
        axis: int,
        bias: Value,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the entries that a layer makes along an axis, zero where its rows are."""
        labels = weight.axes[output_axis] if labels is None else labels
        self.output_axes[weight.name] = weight.order[output_axis]
        if isinstance(bias, Stored):
            self.classes.join(bias.axes[-1], labels)
        elif bias is not None:
            self.classes.keep_dense(labels, "its bias is computed")
        return _spread(labels, axis, node)

    def _embedding(self, node: fx.Node, given: "_Given") -> Value:
        weight = given["weight"]
        return _spread(weight.axes[1], -1, node) if isinstance(weight, Stored) else None

    # -- normalisations --------------------------------------------------------------------------

    def _batch_norm(self, node: fx.Node, given: "_Given") -> Value:
        return self._normalised(node, given, _along(self._entries(given["input"]), 1))

    def _normalised(self, node: fx.Node, given: "_Given", rows: Tensor) -> Value:
        """Join each channel with what is stored for it; its scale and shift make it zero."""
        names = ("weight", "bias", "running_mean", "running_var")
        stored = [s for s in map(given.get, names) if isinstance(s, Stored)]
        self.classes.join_rows(
            torch.cat([rows, *(s.axes[0][:, None] for s in stored)], 1), "normalises other values"
        )
        made_zero = isinstance(given.get("weight"), Stored) and isinstance(given["bias"], Stored)
        labels = self.classes.roots(rows[:, 0])
        self._note_cut(node, labels)
        return _spread(labels if made_zero else -labels, 1, node)

    def _group_norm(self, node: fx.Node, given: "_Given") -> Value:
        groups = given.options["num_groups"]
        rows = _along(self._entries(given["input"]), 1)
        self.classes.join_rows(rows.reshape(groups, -1), "a part of a norm group")
        self._refuse_one_class(rows, "width of a GroupNorm")
        return self._normalised(node, given, rows)

    def _layer_norm(self, node: fx.Node, given: "_Given") -> Value:
        labels = self._entries(given["input"])
        width = len(given.options["normalized_shape"])
        reason = f"width of {'a LayerNorm' if 'bias' in given else 'an RMSNorm'}"
        self.classes.join_rows(labels.reshape(-1, math.prod(labels.shape[-width:])), reason)
        self._refuse_one_class(labels, reason)
        shifted = given.get("bias") is not None
        return self._rooted(labels, junk=shifted)

    def _softmax(self, node: fx.Node, given: "_Given") -> Value:
        labels = self._entries(given[0])
        reason = "softmax over its channels"
        self.classes.join_rows(labels.movedim(given.options["dim"], -1).flatten(0, -2), reason)
        self._refuse_one_class(labels, reason)
        return self._rooted(labels, junk=True)

    def _refuse_one_class(self, labels: Tensor, reason: str) -> None:
        if len(torch.unique(self.classes.roots(labels))) == 1:
            self.classes.keep_dense(labels, reason)

    # -- products of activations -----------------------------------------------------------------

    def _product(self, node: fx.Node, given: "_Given") -> Value:
        first, second = given[0], given[1]
        if isinstance(second, Stored) and len(second.axes) == 2:
            return self._dense_layer(node, first, second, None, 1)
        a, b = self._entries(first), self._entries(second)
        if min(a.ndim, b.ndim) < 2:
            return None
        if not (_has_labels(a) and _has_labels(b)):
            return self._weighted_sum(node, a, b)
        return self._together(node, [a, b], zero=[a, b])

    def _weighted_sum(self, node: fx.Node, a: Tensor, b: Tensor) -> Value:
        """Sums along an axis of channels that does not tell them apart, as of positions."""
        labels, other = (a, b) if _has_labels(a) else (b, a)
        contracted = -1 if labels is a else -2
        kept = -2 if labels is a else -1
        roots = self.classes.roots(labels)
        batch = range(roots.ndim - 2)
        clashes = not _is_constant(roots, contracted) or any(
            not _is_constant(roots, axis) and other.ndim == roots.ndim and other.shape[axis] > 1
            for axis in batch
        )
        if clashes:
            return None
        shape = _shape(node)
        expanded = labels.select(contracted, 0).unsqueeze(contracted)
        return expanded.expand(shape) if kept == -1 else expanded.expand(shape).contiguous()

    def _attention(self, node: fx.Node, given: "_Given") -> Value:
        query, key, value = (self._entries(given[name]) for name in ("query", "key", "value"))
        if query.shape[:-2] != value.shape[:-2]:
            return None
        mask = given.get("attn_mask")
        if mask is not None:
            shape = self._entries(mask).shape
            if len(shape) > 2 and shape[-3] > 1:
                return None
        return self._together(node, [query, key, value], zero=[value])

    def _together(self, node: fx.Node, operands: Sequence[Tensor], zero: Sequence[Tensor]) -> Value:
        """Let each matrix of a batch be one channel (a head), zero where one of `zero` is."""
        shape = _shape(node)
        batch = shape[:-2]
        flat = [o.expand(*batch, *o.shape[-2:]).reshape(math.prod(batch), -1) for o in operands]
        self.classes.join_rows(torch.cat(flat, 1), "multiplied with other values")
        roots = self.classes.roots(flat[0][:, 0])
        is_zero = torch.zeros_like(roots, dtype=torch.bool)
        for operand in zero:
            its_rows = operand.expand(*batch, *operand.shape[-2:]).reshape(math.prod(batch), -1)
            is_zero |= (its_rows > 0).all(1)
        return torch.where(is_zero, roots, -roots).view(*batch, 1, 1).expand(shape)

    # -- entry by entry --------------------------------------------------------------------------

    def _pointwise(self, node: fx.Node, given: "_Given") -> Value:
        shape = _shape(node)
        values = given.inputs
        partner = next((v for v in values if isinstance(v, Tensor) and _has_labels(v)), None)
        operands = [self._entries(value, partner) for value in values]
        expanded = [operand.expand(shape) for operand in operands]
        result = torch.stack([self.classes.roots(operand) for operand in expanded]).amax(0)
        for operand in operands:
            if not _has_labels(operand):
                self._meet_unlabelled(operand, result)
        added = str(node.target).startswith(("aten.add", "aten.sub"))
        for value, operand in zip(values, expanded, strict=True):
            residual = added and isinstance(value, Tensor)
            self.classes.join(operand, result, residual=residual)
        result = self.classes.roots(result)
        for operand in operands:
            if _has_labels(operand):
                clash = (operand.expand(shape) == UNLABELLED) & (result != UNLABELLED)
                self.classes.keep_dense(result[clash], _NO_CHANNELS)
        return torch.where(self._stays_zero(node, expanded), result, -result)

    def _meet_unlabelled(self, operand: Tensor, labels: Tensor) -> None:
        """Join along the axes of an operand that has other values for each index of them."""
        roots, missing = self.classes.roots(labels), labels.ndim - operand.ndim
        axes = [
            axis
            for axis in range(missing, labels.ndim)
            if operand.shape[axis - missing] > 1 and not _is_constant(roots, axis)
        ]
        if axes:
            rest = [axis for axis in range(labels.ndim) if axis not in axes]
            size = math.prod(labels.shape[axis] for axis in axes)
            self.classes.join_rows(labels.permute(*rest, *axes).reshape(-1, size), _NO_CHANNELS)
            self._refuse_one_class(labels, _NO_CHANNELS)

    def _stays_zero(self, node: fx.Node, operands: Sequence[Tensor]) -> Tensor:
        """Return where the result is zero if those operands are that are zero when pruned."""
        codes = sum((operand > 0).long() << i for i, operand in enumerate(operands))
        assert isinstance(codes, Tensor)
        result = torch.zeros_like(codes, dtype=torch.bool)
        for code in torch.unique(codes).tolist():
            if _is_zero_of(node, [bool(code >> i & 1) for i in range(len(operands))]):
                result |= codes == code
        return result

    def _prelu(self, node: fx.Node, given: "_Given") -> Value:
        labels, weight = self._entries(given[0]), given[1]
        if isinstance(weight, Stored) and len(weight.axes[0]) > 1:
            self._read(_along(labels, 1), weight.axes[0])
        return labels

    def _glu(self, node: fx.Node, given: "_Given") -> Value:
        value, gate = self._entries(given[0]).chunk(2, given.options.get("dim", -1))
        self.classes.join(value, gate)
        return value

    # -- moving and reducing ---------------------------------------------------------------------

    def _copy(self, node: fx.Node, given: "_Given") -> Value:
        return self._entries(given[0])

    def _move(self, node: fx.Node, given: "_Given") -> Value:
        labels = self._entries(given[0])
        others = [self._entries(value) for value in given.inputs[1:]]
        moved = _run(node, [labels.contiguous(), *others])
        for part in moved if isinstance(moved, list | tuple) else (labels, moved):
            self._note_cut(node, part)
        if _name(node) in _RESHAPES:
            self._note_split(labels, moved.shape)
        elif _name(node) == "channel_shuffle":
            groups = given.options["groups"]
            width = labels.shape[1] // groups
            self._note_split(labels, (len(labels), groups, width, *labels.shape[2:]))
        return list(moved) if isinstance(moved, tuple) else moved

    def _cat(self, node: fx.Node, given: "_Given") -> Value:
        joined: Tensor = _run(node, [self._entries(value) for value in given.inputs])
        return joined

    def _split(self, node: fx.Node, given: "_Given") -> Value:
        labels = self._entries(given[0])
        parts = list(_run(node, [labels]))
        if len({part.shape for part in parts}) == 1:
            for part in parts[1:]:
                self.classes.join(parts[0], part)
        for part in (labels, *parts):
            self._note_cut(node, part)
        return parts

    def _index(self, node: fx.Node, given: "_Given") -> Value:
        """Take entries along axes that do not tell channels apart."""
        labels = self._entries(given[0])
        if "dim" in given.options:
            axis, index_rank = given.options["dim"], 1
        else:
            indices = given.options["indices"]
            axes = [axis for axis, index in enumerate(indices) if index is not None]
            if len(axes) > 1:
                return None
            axis = axes[0]
            index_rank = indices[axis].meta["val"].ndim
        if not _is_constant(self.classes.roots(labels), axis):
            return None
        first = labels.select(axis, 0)
        axis %= labels.ndim
        ones = [1] * index_rank
        return first.reshape(*first.shape[:axis], *ones, *first.shape[axis:]).expand(_shape(node))

    def _pad(self, node: fx.Node, given: "_Given") -> Value:
        labels, pad = self._entries(given[0]), given.options["pad"]
        value = given.options.get("value") or 0
        roots = self.classes.roots(labels)
        padded = [-1 - i // 2 for i, size in enumerate(pad) if size]
        if any(not _is_constant(roots, axis) for axis in padded):
            return torch.nn.functional.pad(labels, pad)  # what is added is no channel
        for axis in padded:
            labels = labels.narrow(axis, 0, 1)
        labels = labels.expand(_shape(node))
        return -labels.abs() if value else labels

    def _pool(self, node: fx.Node, given: "_Given") -> Value:
        labels = self._entries(given[0])
        spatial = next(int(digit) for digit in "123" if f"{digit}d" in _name(node))
        return self._reduced(node, labels, list(range(-spatial, 0)), "pooled with other channels")

    def _reduce(self, node: fx.Node, given: "_Given") -> Value:
        labels, name = self._entries(given[0]), _name(node)
        axes = given.options.get("dim")
        axes = list(range(labels.ndim)) if axes is None or axes == [] else axes
        axes = [axes] if isinstance(axes, int) else axes
        roots = self.classes.roots(labels)
        rest = [a for a in range(labels.ndim) if a not in [x % labels.ndim for x in axes]]
        if any(not _is_constant(roots, axis) for axis in axes) and all(
            _is_constant(roots, axis) for axis in rest
        ):
            if name != "sum" or bool((labels <= 0).any()):
                self.classes.keep_dense(labels, f"{name} over its channels")
            return _blank(node)
        reduced = self._reduced(node, labels, axes, f"{name} over its channels", keep_axes=False)
        return -reduced.abs() if name in _NOT_ZERO_OF_ZEROS else reduced

    def _reduced(
        self,
        node: fx.Node,
        labels: Tensor,
        axes: Sequence[int],
        reason: str,
        *,
        keep_axes: bool = True,
    ) -> Tensor:
        """Join what is reduced to one entry, and return the labels of the result."""
        axes = [axis % labels.ndim for axis in axes]
        rest = [axis for axis in range(labels.ndim) if axis not in axes]
        self.classes.join_rows(
            labels.permute(*rest, *axes).reshape(-1, math.prod(labels.shape[a] for a in axes)),
            reason,
        )
        for axis in axes:
            labels = labels.narrow(axis, 0, 1)
        shape = _shape(node)
        return labels.expand(shape) if keep_axes else labels.reshape(shape)

    # -- labels ----------------------------------------------------------------------------------

    def _entries(self, value: Value, partner: Tensor | None = None) -> Tensor:
        """Return labels for each entry; what is stored carries them along one of its axes.

        Args:
            value: An activation, or what is stored.
            partner: Entries that it will meet, which tell along which axis.
        """
        if isinstance(value, Tensor):
            return value
        if isinstance(value, list):
            parts = [self._entries(part).flatten() for part in value]
            return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)
        if value is None:
            return torch.zeros((), dtype=torch.long)
        sizes = [len(labels) for labels in value.axes]
        axis = self._axis_of_channels(value, partner)
        if axis is None:
            return torch.zeros(sizes, dtype=torch.long)
        shape = [1] * len(sizes)
        shape[axis] = sizes[axis]
        labels = value.axes[axis].view(shape).expand(sizes)
        return labels if value.is_parameter else -labels

    def _axis_of_channels(self, value: Stored, partner: Tensor | None) -> int | None:
        sizes = [len(labels) for labels in value.axes]
        large = [axis for axis, size in enumerate(sizes) if size > 1]
        if partner is not None:
            roots, ahead = self.classes.roots(partner), partner.ndim - len(sizes)
            telling = [
                axis
                for axis in large
                if axis + ahead >= 0
                and roots.shape[axis + ahead] == sizes[axis]
                and not _is_constant(roots, axis + ahead)
            ]
            if len(telling) == 1:
                return telling[0]
            if ahead >= 0 and not telling:
                return None  # it is the same for all channels
        if not value.is_parameter or not large:
            return None
        return 1 if len(sizes) == 4 and 1 in large else large[-1]

    def _rooted(self, labels: Tensor, *, junk: bool) -> Tensor:
        roots = self.classes.roots(labels)
        return torch.where((labels > 0) & (not junk), roots, -roots)

    def _has_channels(self, value: Value) -> bool:
        if isinstance(value, list):
            return any(self._has_channels(part) for part in value)
        return isinstance(value, Stored) or (isinstance(value, Tensor) and _has_labels(value))

    def _note_cut(self, node: fx.Node, labels: Tensor) -> None:
        """Remember how many channels the code that calls this may count on."""
        stack = list(node.meta.get("nn_module_stack", {}).values())
        roots = self.classes.roots(labels)
        for axis in range(labels.ndim):
            if stack and not _is_constant(roots, axis):
                rows = torch.unique(_along(labels.abs(), axis), dim=1)
                self.cuts.append(Cut(module=stack[-1][0], labels=rows))

    def _note_split(self, labels: Tensor, shape: Sequence[int]) -> None:
        """Remember where one axis of channels becomes several."""
        roots = self.classes.roots(labels)
        for axis, parts in _split_axes(labels.shape, shape):
            if not _is_constant(roots, axis):
                rows = torch.unique(_along(labels.abs(), axis), dim=1)
                self._splits.append((rows, parts))

    def _settle(self, rows: Tensor, parts: tuple[int, ...]) -> int:
        """Join over all new axes but the last, if slices are not whole yet; count the classes."""
        grid = self.classes.roots(rows).view(*parts, -1)
        varying = [axis for axis in range(len(parts)) if not _is_constant(grid, axis)]
        if len(varying) > 1:
            self.classes.join_rows(grid.movedim(varying[-1], 0).flatten(1), "cut into pieces")
        return len(torch.unique(self.classes.roots(rows)))


class _Given:
    """The arguments of a call: tensors as values, everything else as it is."""

    def __init__(self, node: fx.Node, values: dict[fx.Node, Value]) -> None:
        target = node.target
        assert isinstance(target, torch._ops.OpOverload)
        names = [argument.name for argument in target._schema.arguments]
        self.options: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        self._names = names
        self._values = values
        self.inputs = [values[source] for source in _sources(node) if _is_tensor(source)]

    def __getitem__(self, key: str | int) -> Value:
        value = self.options.get(self._names[key] if isinstance(key, int) else key)
        if isinstance(value, fx.Node):
            return self._values[value]
        return [self._values[v] for v in value] if isinstance(value, list | tuple) else None

    def get(self, name: str) -> Value:
        return self[name]

    def __contains__(self, name: str) -> bool:
        return name in self._names


def _sources(node: fx.Node) -> list[fx.Node]:
    """Return the nodes among the arguments, in order and as often as they come."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), lambda source: found.append(source))
    return found


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor | list | tuple)


def _name(node: fx.Node) -> str:
    """Return what an operation does, whether it does so in place or not."""
    name = str(node.target).split(".")[1]
    return name.removesuffix("_") if _writes(node) else name


def _writes(node: fx.Node) -> bool:
    """Whether an operation changes its first argument."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    first = next(iter(node.target._schema.arguments), None)
    return bool(first and first.alias_info and first.alias_info.is_write)


def _viewed(node: fx.Node) -> fx.Node | None:
    """Return the node of which this one may be a view."""
    is_view = node.target is operator.getitem or (
        isinstance(node.target, torch._ops.OpOverload)
        and _name(node) in _MOVES | _COPIES | {"split", "split_with_sizes", "chunk"}
    )
    source = node.args[0] if node.args else None
    return source if is_view and isinstance(source, fx.Node) else None


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta["val"]
    return tuple((value[0] if isinstance(value, list | tuple) else value).shape)


def _blank(node: fx.Node) -> Value:
    """Return that nothing of a node's result is a channel."""

    def blank(value: Any) -> Value:
        if isinstance(value, list | tuple):
            return [blank(part) for part in value]
        return torch.zeros(value.shape, dtype=torch.long) if isinstance(value, Tensor) else None

    return blank(node.meta.get("val"))


def _run(node: fx.Node, operands: Sequence[Tensor]) -> Any:
    """Run an operation on other tensors in the place of its own."""
    replacements = iter(operands)

    def replaced(source: fx.Node) -> Any:
        return next(replacements) if _is_tensor(source) else source.meta["val"]

    args, kwargs = fx.map_arg((node.args, node.kwargs), replaced)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _is_zero_of(node: fx.Node, is_zero: Sequence[bool]) -> bool:
    """Whether an operation gives zero whatever the operands are that are not zero themselves."""
    generator = torch.Generator().manual_seed(0)
    operands = [
        torch.zeros(_PROBES) if zero else torch.randn(_PROBES, generator=generator)
        for zero in is_zero
    ]
    try:
        result = _run(node, operands)
    except (RuntimeError, TypeError, ValueError):  # such as a condition that must be bool
        return False
    return isinstance(result, Tensor) and not bool(result.count_nonzero())


def _moved(stored: Stored, node: fx.Node) -> Stored:
    """Return what is stored with its axes in another order."""
    order = [
        s - 2 for s in _run(node, [torch.empty([i + 2 for i in range(len(stored.axes))])]).shape
    ]
    return replace(
        stored,
        axes=tuple(stored.axes[axis] for axis in order),
        order=tuple(stored.order[axis] for axis in order),
    )


def _spread(labels: Tensor, axis: int, node: fx.Node) -> Tensor:
    """Return entries of a node's shape that carry labels along an axis."""
    shape = _shape(node)
    ones = [1] * len(shape)
    ones[axis] = len(labels)
    return labels.view(ones).expand(shape)


def _along(labels: Tensor, axis: int) -> Tensor:
    """Return one row for each index of an axis."""
    moved = labels.movedim(axis, 0)
    return moved.reshape(len(moved), -1)


def _has_labels(labels: Tensor) -> bool:
    return bool((labels != UNLABELLED).any())


def _is_constant(roots: Tensor, axis: int) -> bool:
    return bool((roots == roots.narrow(axis, 0, 1)).all())


def _split_axes(before: Sequence[int], after: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Return each axis of which a reshape makes several larger than 1, and their sizes."""
    splits: list[tuple[int, tuple[int, ...]]] = []
    position = 0
    for axis, size in enumerate(before):
        parts: list[int] = []
        while position < len(after) and math.prod(parts) * after[position] <= size:
            if math.prod(parts) == size and after[position] != 1:
                break
            parts.append(after[position])
            position += 1
        if math.prod(parts) != size:
            return splits  # several axes are mixed from here on
        large = tuple(part for part in parts if part > 1)
        if len(large) > 1:
            splits.append((axis, large))
    return splits

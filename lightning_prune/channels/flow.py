"""What is known of the channels while a graph is walked, and what rules share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.channels.labels import (
    Labels,
    collect_rows,
    has_channels,
    narrow_expanded_axes,
    spread_along_axis,
)
from lightning_prune.channels.operations import Call, Stored, Value


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """An operation whose arguments may say how many channels there are.

    Args:
        module: The qualified name of the module whose code calls it.
        labels: For an axis that it takes or makes, the labels of each index, ``(size, some)``.
    """

    module: str
    labels: Tensor


class Flow:
    """The labels of a model, and what must hold of them in the end.

    Each entry of an activation has one label. Whatever removes its channel removes the entry, so
    a tensor stays a box only if a class fills whole slices of one axis: `settle` sees to it.

    Args:
        labels: The labels of the model; rules join them.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.output_axes: dict[str, set[int]] = {}
        """The axes along which each weight makes channels, by name."""
        self.cuts: list[Cut] = []
        self._crossings: list[tuple[Tensor, int | None]] = []
        self._picks: list[Tensor] = []

    # -- labels of values ------------------------------------------------------------------------

    def has_channels(self, value: Value) -> bool:
        """Whether any of this can belong to a channel."""
        if isinstance(value, list):
            return any(self.has_channels(part) for part in value)
        return isinstance(value, Stored) or (isinstance(value, Tensor) and has_channels(value))

    def entries(self, value: Value, partner: Tensor | None = None) -> Tensor:
        """Return labels for each entry.

        An entry of what is stored lies along several axes but has one label: that of the axis of
        its channels. Its other axes stay dense, or the entry could go without being asked.

        Args:
            value: An activation, or what is stored.
            partner: Entries that it will meet, which tell which axis that is.
        """
        if isinstance(value, Tensor):
            return value
        if isinstance(value, list):
            parts = [self.entries(part).flatten() for part in value]
            return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)
        if value is None:
            return torch.zeros((), dtype=torch.long)
        chosen = self._axis_of_channels(value, partner)
        for axis, labels in enumerate(value.axes):
            if axis != chosen and len(labels) > 1:
                self.labels.keep_dense(labels, "is used as a value")
        if chosen is None:
            return torch.zeros(value.shape, dtype=torch.long)
        labels = spread_along_axis(value.axes[chosen], chosen, value.shape)
        return labels if value.is_parameter else -labels

    def _axis_of_channels(self, value: Stored, partner: Tensor | None) -> int | None:
        large = [axis for axis, size in enumerate(value.shape) if size > 1]
        if partner is not None:
            ahead = partner.ndim - len(value.axes)
            varying = self.labels.varying_axes(partner)
            telling = [
                axis
                for axis in large
                if axis + ahead in varying and partner.shape[axis + ahead] == value.shape[axis]
            ]
            if len(telling) == 1:
                return telling[0]
            if ahead >= 0 and not telling:
                return None  # it is the same for all channels
        if not value.is_parameter or not large:
            return None
        return 1 if len(value.axes) == 4 and 1 in large else large[-1]

    def keep_dense(self, value: Value, reason: str) -> None:
        """Keep whatever channels are in this."""
        if isinstance(value, list):
            for part in value:
                self.keep_dense(part, reason)
        elif value is not None:
            for labels in value.axes if isinstance(value, Stored) else [value]:
                self.labels.keep_dense(labels, reason)

    def refuse_one_class(self, labels: Tensor, reason: str) -> None:
        """Keep dense what is one channel altogether: nothing would be left without it."""
        if not self.labels.varying_axes(labels):
            self.labels.keep_dense(labels, reason)

    # -- what layers do --------------------------------------------------------------------------

    def read(self, rows: Tensor, weight: Stored, inputs: Tensor) -> None:
        """Let a weight's input indices go with the channels that they read.

        Exact, as the weight is zero there: whatever the channel holds is multiplied with zero.

        Args:
            rows: Labels that each index reads, ``(indices, entries)``.
            weight: What reads.
            inputs: Its labels for each index, ``(indices, some)``.
        """
        inputs = inputs.reshape(len(rows), -1)
        self.labels.join_rows(torch.cat([rows, inputs], 1), "reads the network input")
        if not weight.is_parameter:
            self.labels.keep_dense(rows[rows < 0], "is read by a buffer")

    def make(self, weight: Stored, axis: int, bias: Value, labels: Tensor) -> Tensor:
        """Return the labels that a weight's output channels have, zero where weight and bias are.

        Args:
            weight: What makes them.
            axis: Its output axis.
            bias: What is added, if anything.
            labels: The label of each output.
        """
        is_zero = weight.is_parameter
        if is_zero:
            self.output_axes.setdefault(weight.name, set()).add(weight.order[axis])
        if isinstance(bias, Stored) and bias.shape[-1:] == labels.shape:
            self.labels.join(bias.axes[-1], labels)
            is_zero = is_zero and bias.is_parameter
        elif bias is not None:
            self.keep_dense(bias, "is used as a value")
            self.labels.keep_dense(labels, "its bias is computed")
        return labels if is_zero else -labels

    # -- what must hold in the end ---------------------------------------------------------------

    def note_cut(self, call: Call, labels: Tensor) -> None:
        """Remember how many channels the code that makes this call may count on."""
        if call.module is None:
            return
        for axis in self.labels.varying_axes(labels):
            self.cuts.append(Cut(module=call.module, labels=collect_rows(labels, axis).abs()))

    def note_crossing(self, labels: Tensor, kept: int | None = None) -> None:
        """Remember entries whose classes differ along several axes.

        Args:
            labels: Entries.
            kept: The axis along which they may still differ in the end; None for the last.
        """
        if len(self.labels.varying_axes(labels)) > 1:
            self._crossings.append((narrow_expanded_axes(labels), kept))

    def note_pick(self, labels: Tensor, axis: int) -> None:
        """Remember that entries are picked along an axis by a number, which must not shift."""
        if axis % labels.ndim in self.labels.varying_axes(labels):
            self._picks.append(collect_rows(labels, axis))

    def settle(self) -> None:
        """Make whole slices of what differs along several axes, where nothing else has done so."""
        before = -1
        while before != (before := sum(self._settle(*each) for each in self._crossings)):
            pass
        for rows in self._picks:
            if 0 in self.labels.varying_axes(rows):
                self.labels.keep_dense(rows, "is picked by its number")

    def _settle(self, labels: Tensor, kept: int | None) -> int:
        varying = self.labels.varying_axes(labels)
        if len(varying) > 1:
            axis = kept if kept in varying else varying[-1]
            assert axis is not None
            self.labels.join_rows(collect_rows(labels, axis), "cut into pieces")
        return len(torch.unique(self.labels.representatives(labels)))

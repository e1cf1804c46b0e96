"""The state of a walk: the labels of a model, and the requirements that rules add."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.channels.labels import (
    Labels,
    collect_rows,
    narrow_expanded_axes,
    spread_along_axis,
)
from lightning_prune.channels.multiplications import Multiplication
from lightning_prune.channels.operations import Operation, StoredTensor, Value


@dataclass(frozen=True, kw_only=True, eq=False)
class CountedAxis:
    """An axis of an activation whose length may stand as a number in the model's code.

    Args:
        module: The qualified name of the module with this code.
        labels: The labels at each index of the axis, ``(length, labels)``.
    """

    module: str
    labels: Tensor


class Flow:
    """The labels of a model, and the requirements that joins must meet at the end of the walk.

    If a channel is removed, all entries with the label go. The rest is a tensor again only if the
    entries fill whole slices of an axis; `settle` ensures this.

    Args:
        labels: The labels of the model; rules join them.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.output_axes: dict[str, set[int]] = {}
        """For each weight that produces channels, by name: the axes of these channels."""
        self.counted_axes: list[CountedAxis] = []
        self.multiplications: list[Multiplication] = []
        """The products of the last graph."""
        self._single_axes: list[tuple[Tensor, int | None]] = []
        self._same_channels: list[Tensor] = []

    # -- labels ----------------------------------------------------------------------------------

    def label_entries(self, value: Value, partner: Tensor | None = None) -> Tensor:
        """Return the label of each entry.

        An entry of a stored tensor takes the label of a single axis. The other axes stay dense,
        since a channel along them would take the entry away unnoticed.

        Args:
            value: An activation or a stored tensor.
            partner: Labels that a stored tensor meets. They tell which axis has the channels.
        """
        if isinstance(value, Tensor):
            return value
        if isinstance(value, list):
            parts = [self.label_entries(part).flatten() for part in value]
            return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device="cpu")
        if value is None:
            return torch.zeros((), dtype=torch.long, device="cpu")
        channel_axis = self._find_channel_axis(value, partner)
        for axis, labels in enumerate(value.axis_labels):
            if axis != channel_axis and len(labels) > 1:
                self.labels.keep_dense(labels, "is used as a value")
        if channel_axis is None:
            return torch.zeros(value.shape, dtype=torch.long, device="cpu")
        labels = spread_along_axis(value.axis_labels[channel_axis], channel_axis, value.shape)
        return labels if value.is_parameter else -labels

    def keep_dense(self, value: Value, reason: str) -> None:
        """Keep all channels of a value dense; the first reason counts."""
        if isinstance(value, list):
            for part in value:
                self.keep_dense(part, reason)
        elif value is not None:
            for labels in value.axis_labels if isinstance(value, StoredTensor) else [value]:
                self.labels.keep_dense(labels, reason)

    def keep_dense_if_single(self, labels: Tensor, reason: str) -> None:
        """Keep labels dense if all are of the same channel: without it nothing is left."""
        if not self.labels.varying_axes(labels):
            self.labels.keep_dense(labels, reason)

    def _find_channel_axis(self, value: StoredTensor, partner: Tensor | None) -> int | None:
        """Return the axis whose labels the entries take; None if they belong to no channel."""
        long_axes = [axis for axis, length in enumerate(value.shape) if length > 1]
        if partner is not None:
            ahead = partner.ndim - len(value.shape)
            varying = self.labels.varying_axes(partner)
            aligned = [
                axis
                for axis in long_axes
                if axis + ahead in varying and partner.shape[axis + ahead] == value.shape[axis]
            ]
            if len(aligned) == 1:
                return aligned[0]
            if ahead >= 0 and not aligned:
                return None  # all channels of the partner meet the same entries
        if not value.is_parameter or not long_axes:
            return None
        is_image = len(value.shape) == 4 and 1 in long_axes
        return 1 if is_image else long_axes[-1]

    # -- weights ---------------------------------------------------------------------------------

    def read(self, rows: Tensor, weight: StoredTensor, inputs: Tensor) -> None:
        """Join each input index of a weight with the channels that it reads.

        This is exact: if the channel is pruned, the weight is zero at this index. The channel
        is multiplied by zero then, and may hold any values.

        Args:
            rows: The labels that each index reads, ``(indices, entries)``.
            weight: The stored tensor that reads them.
            inputs: The labels of the weight at each index, ``(indices,)`` or ``(indices, labels)``.
        """
        inputs = inputs.reshape(len(rows), -1)
        self.labels.join_rows(torch.cat([rows, inputs], 1), "reads the network input")
        if not weight.is_parameter:
            self.labels.keep_dense(rows[rows < 0], "is read by a buffer")

    def produce(self, weight: StoredTensor, axis: int, bias: Value, labels: Tensor) -> Tensor:
        """Return the labels of the channels that a weight produces.

        A pruned channel is zero if weight and bias are parameters, since both are zero there then.

        Args:
            weight: The stored tensor that produces the channels.
            axis: The output axis of the weight.
            bias: The value that is added; None for no bias.
            labels: The label of each output.
        """
        is_zero = weight.is_parameter
        if is_zero:
            self.output_axes.setdefault(weight.name, set()).add(weight.model_axes[axis])
        if isinstance(bias, StoredTensor) and bias.shape[-1:] == labels.shape:
            self.labels.join(bias.axis_labels[-1], labels)
            is_zero = is_zero and bias.is_parameter
        elif bias is not None:
            self.keep_dense(bias, "is used as a value")
            self.labels.keep_dense(labels, "the bias is computed")
        return labels if is_zero else -labels

    # -- requirements ----------------------------------------------------------------------------

    def note_counted_axes(self, operation: Operation, labels: Tensor) -> None:
        """Note the axes with channels that the code which calls an operation may count on."""
        if operation.module is None:
            return
        for axis in self.labels.varying_axes(labels):
            rows = collect_rows(labels, axis).abs()
            self.counted_axes.append(CountedAxis(module=operation.module, labels=rows))

    def require_single_axis(self, labels: Tensor, axis: int | None = None) -> None:
        """Require that channels differ along a single axis in the end.

        Args:
            labels: Labels that may differ along several axes now.
            axis: The axis to choose; None for the last along which channels differ.
        """
        if len(self.labels.varying_axes(labels)) > 1:
            self._single_axes.append((narrow_expanded_axes(labels), axis))

    def require_same_channel(self, labels: Tensor, axis: int) -> None:
        """Require that channels are the same along an axis in the end; else they stay dense."""
        if axis % labels.ndim in self.labels.varying_axes(labels):
            self._same_channels.append(collect_rows(labels, axis))

    def settle(self) -> None:
        """Join channels until all requirements are met.

        A join for one requirement can change another. So there are rounds of joins, until the
        number of channels stays the same.
        """
        before, number = -1, self._join_for_single_axes()
        while number != before:
            before, number = number, self._join_for_single_axes()
        for rows in self._same_channels:
            if 0 in self.labels.varying_axes(rows):
                self.labels.keep_dense(rows, "is picked by number")

    def _join_for_single_axes(self) -> int:
        """Join channels for each requirement; return the number of channels that are left."""
        number = 0
        for labels, axis in self._single_axes:
            varying = self.labels.varying_axes(labels)
            if len(varying) > 1:
                kept = axis if axis in varying else varying[-1]
                self.labels.join_rows(collect_rows(labels, kept), "is cut into pieces")
            number += len(torch.unique(self.labels.representatives(labels)))
        return number


Rule = Callable[[Flow, Operation], Value]
"""The effect of an operation on labels: it joins labels, and returns the labels of the result.

A rule returns None if no result is exact. Then the channels of all arguments stay dense.
"""

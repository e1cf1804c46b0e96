"""Rules for operations that reduce many entries to one: sums, maxima, pooling.

Within a channel, a reduction of zeros is zero. Over channels, only a sum ignores the zeros of a
pruned channel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_prune.channels.flow import Flow, Rule
from lightning_prune.channels.labels import (
    collapse_axis,
    collect_rows,
    has_nonzero_entries,
    mark_nonzero,
    narrow_expanded_axes,
)
from lightning_prune.channels.operations import Operation, Value

_NONZERO_OF_ZEROS = ("logsumexp", "argmax", "argmin")
_IGNORING_ZEROS = ("sum", "norm", "linalg_vector_norm")


def pool(flow: Flow, operation: Operation) -> Value:
    """Exact: a window lies in one channel and is zero where the channel is, padding included."""
    labels = flow.label_entries(operation[0])
    positions = next(int(digit) for digit in "123" if f"{digit}d" in operation.name)
    axes = range(-positions, 0)
    return _join_reduced(
        flow, labels, axes, operation.result_shape, "is pooled with other channels"
    )


def reduce(flow: Flow, operation: Operation) -> Value:
    """Exact within a channel: zeros become zero, but for a few operations.

    Over all channels it is exact if zeros add nothing, as in a sum.
    """
    labels, name = flow.label_entries(operation[0]), operation.name
    reason = f"{name} over channels"
    axes = operation.option("dim", [])
    axes = [axes] if isinstance(axes, int) else list(axes) or list(range(labels.ndim))
    axes = [axis % labels.ndim for axis in axes]
    varying = flow.labels.varying_axes(labels)
    if varying and set(varying) <= set(axes):
        order = operation.option("ord", operation.option("p", 2))
        if name not in _IGNORING_ZEROS or has_nonzero_entries(labels) or order <= 0:
            flow.labels.keep_dense(labels, reason)
        return torch.zeros(operation.result_shape, dtype=torch.long, device="cpu")
    shape = [1 if axis in axes else length for axis, length in enumerate(labels.shape)]
    result = _join_reduced(flow, labels, axes, shape, reason).reshape(operation.result_shape)
    return mark_nonzero(result) if name in _NONZERO_OF_ZEROS else result


def _join_reduced(
    flow: Flow, labels: Tensor, axes: Sequence[int], shape: Sequence[int], reason: str
) -> Tensor:
    """Join channels that are reduced to one entry, and return the labels of the result.

    Args:
        flow: The labels of the model.
        labels: The labels of the argument.
        axes: The axes that are reduced.
        shape: Shape of the result, with the reduced axes.
        reason: Why channels that meet entries without channels stay dense.
    """
    axes = [axis % labels.ndim for axis in axes]
    others = [axis for axis in range(labels.ndim) if axis not in axes]
    flow.labels.join_rows(collect_rows(narrow_expanded_axes(labels), *others), reason)
    for axis in axes:
        labels = collapse_axis(labels, axis)
    return labels.expand(tuple(shape))


RULES: dict[str, Rule] = {
    "max_pool1d": pool,
    "max_pool2d": pool,
    "max_pool3d": pool,
    "max_pool1d_with_indices": pool,
    "max_pool2d_with_indices": pool,
    "max_pool3d_with_indices": pool,
    "avg_pool1d": pool,
    "avg_pool2d": pool,
    "avg_pool3d": pool,
    "adaptive_avg_pool1d": pool,
    "adaptive_avg_pool2d": pool,
    "adaptive_avg_pool3d": pool,
    "adaptive_max_pool1d": pool,
    "adaptive_max_pool2d": pool,
    "adaptive_max_pool3d": pool,
    "upsample_nearest1d": pool,
    "upsample_nearest2d": pool,
    "upsample_nearest3d": pool,
    "upsample_linear1d": pool,
    "upsample_bilinear2d": pool,
    "upsample_bicubic2d": pool,
    "upsample_trilinear3d": pool,
    "_upsample_nearest_exact1d": pool,
    "_upsample_nearest_exact2d": pool,
    "_upsample_nearest_exact3d": pool,
    "_upsample_bilinear2d_aa": pool,
    "_upsample_bicubic2d_aa": pool,
    "sum": reduce,
    "mean": reduce,
    "amax": reduce,
    "amin": reduce,
    "max": reduce,
    "min": reduce,
    "var": reduce,
    "std": reduce,
    "norm": reduce,
    "linalg_vector_norm": reduce,
    "prod": reduce,
    "logsumexp": reduce,
    "argmax": reduce,
    "argmin": reduce,
}

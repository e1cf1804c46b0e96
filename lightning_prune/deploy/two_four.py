"""2:4: which weights sparse tensor cores can take, and why they cannot take the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
)

_TENSORRT = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LEAST_CAPABILITY = (8, 0)  # the cards from Ampere on have sparse tensor cores


def explain_pattern(weight: Tensor) -> str | None:
    """Return why a weight is not 2:4; None if it is.

    Args:
        weight: A tensor of shape ``(output, input, ...)``.

    Examples:
        >>> explain_pattern(torch.tensor([[1.0, 0.0, 2.0, 0.0]]))
        >>> explain_pattern(torch.tensor([[1.0, 3.0, 2.0, 0.0], [1.0, 0.0, 0.0, 2.0]]))
        '1 of 2 groups of 4 inputs keeps more than 2'
        >>> explain_pattern(torch.ones(1, 3))
        '3 inputs are not a multiple of 4'
    """
    if weight.ndim < 2 or weight.shape[1] % 4:
        inputs = weight.shape[1] if weight.ndim > 1 else "no"
        return f"{inputs} inputs are not a multiple of 4"
    kept = (weight != 0).movedim(1, -1).reshape(-1, 4).sum(1)
    full = int((kept > 2).count_nonzero())
    if not full:
        return None
    return f"{full} of {len(kept)} groups of 4 inputs keep{'s' if full == 1 else ''} more than 2"


def explain_tensorrt(owner: nn.Module, weight: Tensor) -> str | None:
    """Return why TensorRT's ``--sparsity=enable`` cannot take a weight; None if it can.

    TensorRT runs convolutions and products with constant matrices on sparse tensor cores, if of
    each 4 consecutive inputs at least 2 weights are 0, for each output and kernel position. It then
    times sparse kernels against dense kernels, and takes the faster:
    https://docs.nvidia.com/deeplearning/tensorrt/.

    Args:
        owner: The module that holds the weight.
        weight: A tensor of shape ``(output, input, ...)``.
    """
    if not isinstance(owner, _TENSORRT) and type(owner).__name__ != "Conv1D":
        return f"{type(owner).__name__} is neither Linear nor a convolution"
    return explain_pattern(weight)


@dataclass(frozen=True, kw_only=True)
class SparseKernel:
    """A kernel of torch that multiplies by a 2:4 matrix.

    Args:
        name: Name for a reader.
        convert: Returns a dense 2:4 matrix in the form of the kernel.
        explain: Returns why the kernel cannot take a matrix; None if it can.
    """

    name: str
    convert: Callable[[Tensor], Tensor]
    explain: Callable[[Tensor], str | None]


def find_sparse_kernels() -> Sequence[SparseKernel]:
    """Return the kernels of this build of torch."""
    kernels = [
        SparseKernel(
            name="CUTLASS",
            convert=SparseSemiStructuredTensorCUTLASS.from_dense,
            explain=lambda w: (
                _explain_generation(w) or _explain_card(w, SparseSemiStructuredTensorCUTLASS)
            ),
        )
    ]
    if torch.backends.cusparselt.is_available():
        kernels += [
            SparseKernel(
                name=name,
                convert=convert,
                explain=lambda w: _explain_card(w, SparseSemiStructuredTensorCUSPARSELT),
            )
            for name, convert in (
                ("cuSPARSELt", SparseSemiStructuredTensorCUSPARSELT.from_dense),
                ("cuSPARSELt with fused transposition", _fuse_transposition),
            )
        ]
    return kernels


def explain_linear(layer: nn.Linear, owners: Mapping[int, int]) -> str | None:
    """Return why no kernel can take the weight of a layer, on any card; None if it may.

    Args:
        layer: The layer.
        owners: Number of modules that hold a parameter, by the id of the parameter.
    """
    if type(layer).forward is not nn.Linear.forward:
        return f"{type(layer).__name__} computes in another way than Linear"
    if "weight" not in layer._parameters:
        return "a parametrization computes the weight"
    if owners[id(layer.weight)] > 1:
        return f"shares the weight with {owners[id(layer.weight)] - 1} more"
    return explain_pattern(layer.weight.detach())


def _fuse_transposition(weight: Tensor) -> Tensor:
    before = SparseSemiStructuredTensor._FUSE_TRANSPOSE
    SparseSemiStructuredTensor._FUSE_TRANSPOSE = True
    try:
        return SparseSemiStructuredTensorCUSPARSELT.from_dense(weight)
    finally:
        SparseSemiStructuredTensor._FUSE_TRANSPOSE = before


def _explain_generation(weight: Tensor) -> str | None:
    """Return why the card does not suit torch's kernels of CUTLASS; None if it does."""
    if weight.device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(weight.device)
    if major == _LEAST_CAPABILITY[0]:
        return None
    return f"the card has compute capability {major}.{minor}, not 8.x"


def _explain_card(weight: Tensor, kind: Any) -> str | None:
    """Return why the card, the precision or the shape does not suit a kernel; None if it does."""
    if weight.device.type != "cuda":
        return f"the weight is on {weight.device.type}, not on CUDA"
    capability = torch.cuda.get_device_capability(weight.device)
    if capability < _LEAST_CAPABILITY:
        return f"the card has compute capability {capability[0]}.{capability[1]}, below 8.0"
    limits = kind._DTYPE_SHAPE_CONSTRAINTS.get(weight.dtype)
    if limits is None:
        return f"no kernel for {str(weight.dtype).rpartition('.')[2]}"
    least = limits.sparse_min_rows, limits.sparse_min_cols
    if any(size % unit for size, unit in zip(weight.shape, least, strict=True)):
        shape = " x ".join(map(str, weight.shape))
        return f"{shape} is not in multiples of {least[0]} x {least[1]}"
    return None

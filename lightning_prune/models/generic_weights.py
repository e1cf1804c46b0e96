"""Random weights under which every part of a module has an effect on the outputs."""

import math

import torch
from torch import Tensor, nn

_LEAST_NUMBER, _NUMBER = 0.1, 0.7


def fill_with_generic_weights(module: nn.Module) -> None:
    r"""Give a module random weights of usual sizes, always the same ones.

    The weights of a new module can hide a part of it: a head of zeros, a last gain of zeros, a
    layer scale of 1e-6, queries and keys so small that attention is nearly uniform. Then the
    outputs of a wrong module are the right ones. Generic weights hide nothing:

    - Matrices and kernels are normal, with the variance 2 / fan-in, which keeps the size of
      activations (He et al., "Delving Deep into Rectifiers", 2015,
      https://arxiv.org/abs/1502.01852).
    - Other vectors, such as gains, are uniform in [0.5, 1.5]. Biases are normal, with a standard
      deviation of 0.1. So are the running means of a normalization. Running variances are gains.
    - A single number stays, such as an exponent; a number below 0.1 becomes 0.7.

    Args:
        module: Its parameters and running statistics change.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    filled: set[int] = set()
    with torch.no_grad():
        for child in module.modules():
            for name, tensor in _find_tensors(child).items():
                if id(tensor) not in filled and tensor.numel() and tensor.is_floating_point():
                    filled.add(id(tensor))
                    tensor.copy_(_draw(child, name, tensor, generator))


def _find_tensors(child: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a module and the running statistics of a normalization, by name."""
    found: dict[str, Tensor | None] = dict(child._parameters)
    if isinstance(child, nn.modules.batchnorm._NormBase):
        found |= {name: getattr(child, name) for name in ("running_mean", "running_var")}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _draw(child: nn.Module, name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random tensor in the place of another."""
    if tensor.numel() == 1:
        return tensor if tensor.abs() >= _LEAST_NUMBER else torch.full_like(tensor, _NUMBER)
    options = {"generator": generator, "dtype": torch.float64}
    is_vector = sum(length > 1 for length in tensor.shape) <= 1
    if "bias" in name or name == "running_mean":
        return 0.1 * torch.randn(tensor.shape, device="cpu", **options)  # type: ignore[call-overload, no-any-return]
    if is_vector:
        return 0.5 + torch.rand(tensor.shape, device="cpu", **options)  # type: ignore[call-overload, no-any-return]
    deviation = math.sqrt(2 / _count_inputs(child, tensor))
    return deviation * torch.randn(tensor.shape, device="cpu", **options)  # type: ignore[call-overload, no-any-return]


def _count_inputs(child: nn.Module, tensor: Tensor) -> int:
    """Return how many inputs a matrix or a kernel adds up for an output."""
    if isinstance(child, nn.modules.conv._ConvTransposeNd):
        return tensor.numel() // (tensor.shape[1] * child.groups)
    if isinstance(child, nn.Embedding):
        return 2
    is_stack = tensor.ndim == 3 and not isinstance(child, nn.modules.conv._ConvNd)
    return tensor.shape[1] if is_stack else tensor.numel() // tensor.shape[0]

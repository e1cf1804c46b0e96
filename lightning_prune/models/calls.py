"""A call of a module's ``forward``: the arguments, and how users give them."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from lightning_prune.models.compiled import unwrap_compiled
from lightning_prune.models.trees import find_tensors, map_tensors


class Call(NamedTuple):
    """The arguments of one call of ``forward``, in its order; a tree, as its arguments are.

    Attributes:
        arguments: Positional arguments.
        keywords: Keyword arguments.
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in the order of an ONNX file's inputs."""
        return find_tensors(self)

    @property
    def batch_size(self) -> int | None:
        """Size of the first dimension of the first tensor with dimensions; None without any."""
        return next((tensor.shape[0] for tensor in self.tensors if tensor.ndim), None)

    def has_samples(self, tensor: Tensor) -> bool:
        """Whether the first dimension of a tensor is as long as the batch."""
        return tensor.ndim > 0 and len(tensor) == self.batch_size

    def take_samples(self, number: int) -> "Call":
        """Return the call for the first samples of the batch."""
        return map_tensors(lambda t: t[:number] if self.has_samples(t) else t, self)

    def double_single_sample(self) -> "Call":
        """Return the call for a batch of two if the batch is a single sample.

        Tracing takes a size of 1 for a constant; batch normalization cannot train on one sample.
        """
        if self.batch_size != 1:
            return self
        return map_tensors(lambda t: torch.cat([t, t]) if self.has_samples(t) else t, self)


def make_call(module: nn.Module, example: Any = None) -> Call:
    """Return a copy of an example as a call, on the device of the module's parameters.

    If all floating-point parameters have one dtype, floating-point tensors are cast to it, as
    Lightning casts each batch under a precision such as ``bf16-true``.

    Args:
        module: The module to call.
        example: As Lightning reads an ``example_input_array``: a tuple or list of positional
            arguments, a mapping of keyword arguments, or the only argument. Also a `Call`. By
            default ``module.example_input_array``.

    Raises:
        ValueError: If there is no example, or ``forward`` does not take it.

    Examples:
        >>> make_call(nn.Linear(2, 3), {"input": torch.ones(1, 2)})
        Call(arguments=(tensor([[1., 1.]]),), keywords={})
    """
    if example is None:
        example = getattr(module, "example_input_array", None)
    if example is None:
        refuse_missing_example(module, "example=None", ", or give the argument example")
    try:
        call = bind_call(module, *_split(example))
    except TypeError as error:
        raise ValueError(f"need an example that forward takes, got {error}") from error
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    dtype = dtypes.pop() if len(dtypes) == 1 else None

    def fit(tensor: Tensor) -> Tensor:
        # A clone can be traced, also where inference mode has made the example.
        moved = tensor.detach().to(device).clone()
        return moved.to(dtype) if tensor.is_floating_point() else moved

    return map_tensors(fit, call)


def bind_call(module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Call:
    """Return the arguments in the order of ``forward``, by position where that is possible.

    Raises:
        TypeError: If ``forward`` does not take them.
    """
    forward = unwrap_compiled(module).forward
    bound = inspect.signature(forward).bind(*arguments, **keywords)
    return Call(bound.args, bound.kwargs)


def bind_arguments(module: nn.Module, call: Call) -> dict[str, Any]:
    """Return the arguments of a call by name; those of ``**batch`` by their own names."""
    forward = inspect.signature(unwrap_compiled(module).forward)
    named = dict(forward.bind(*call.arguments, **call.keywords).arguments)
    for name, parameter in forward.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
    return named


def refuse_missing_example(module: nn.Module, found: str, otherwise: str = "") -> NoReturn:
    """Raise ValueError, and say how to give an example of the arguments of ``forward``.

    Args:
        module: The module without an example.
        found: Words for the place where the example was missing.
        otherwise: Words for another remedy.
    """
    raise ValueError(
        f"need an example of the arguments of forward, got {found}; set "
        "self.example_input_array = torch.zeros(1, 3, 224, 224), with the shape of your input, "
        f"in the constructor of {type(unwrap_compiled(module)).__name__}{otherwise}"
    )


def _split(example: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return an example as positional and keyword arguments."""
    if isinstance(example, Call):
        return example
    if isinstance(example, Mapping):
        return (), example
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}

"""What a module's ``forward`` is called with, as users give it."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

Call = tuple[tuple[Any, ...], dict[str, Any]]


def example_of(module: nn.Module, example: Any = None) -> Any:
    """Return a copy of an example of what ``forward`` takes, on the device of the parameters.

    Args:
        module: The module.
        example: The example; None for the module's ``example_input_array``.

    Raises:
        ValueError: If there is none.
    """
    example = getattr(module, "example_input_array", None) if example is None else example
    if example is None:
        raise ValueError(
            "need an example of what forward takes, got example=None; set "
            "self.example_input_array = torch.zeros(1, 3, 224, 224) (with the shape of your "
            f"input) in the constructor of {type(module).__name__}, or give the example itself"
        )
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    # A copy can be traced also if it was made in inference mode.
    return tree_map_only(Tensor, lambda x: x.detach().to(device).clone(), example)


def as_call(module: nn.Module, example: Any) -> Call:
    """Return an example as positional and keyword arguments, in the order of ``forward``.

    Args:
        module: What is called.
        example: As Lightning reads an ``example_input_array``: a tuple or list of positional
            arguments, a mapping of keyword arguments, or else the only argument.

    Raises:
        ValueError: If ``forward`` does not take it.
    """
    args, kwargs = example if isinstance(example, tuple | list) else (example,), {}
    if isinstance(example, Mapping):
        args, kwargs = (), dict(example)
    try:
        return bound_call(module, tuple(args), kwargs)
    except TypeError as error:
        raise ValueError(f"need an example that forward takes, got {error}") from error


def bound_call(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """Return the same arguments in the order of ``forward``, by position where that is possible."""
    forward = getattr(module, "_orig_mod", module).forward
    bound = inspect.signature(forward).bind(*args, **kwargs)
    return bound.args, bound.kwargs

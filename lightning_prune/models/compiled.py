"""Modules that `torch.compile` has wrapped or compiled in place."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from types import MappingProxyType, MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def is_compiled(module: nn.Module) -> bool:
    """Whether a call runs compiled code, by ``torch.compile(module)`` or ``module.compile()``."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def unwrap_compiled(module: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` has wrapped; any other module as it is."""
    inside: nn.Module = getattr(module, "_orig_mod", module)
    return inside


def copy_module(module: Module, known: Mapping[int, Any] = MappingProxyType({})) -> Module:
    """Return a deep copy that runs by its own weights.

    A plain deep copy of a LightningModule that was compiled, by ``module.compile()`` or in a
    Trainer, would run the compiled code and the weights of the original. The copy runs uncompiled.

    Args:
        module: The module.
        known: Copies of parts of the module, by the ids of the parts.
    """
    copied = deepcopy(module, _copy_computed(module) | dict(known))
    for part, original in zip(copied.modules(), module.modules(), strict=True):
        if part._compiled_call_impl is not None:
            part._compiled_call_impl = None
        for name, value in list(vars(part).items()):
            method = getattr(value, "_torchdynamo_orig_callable", None)
            if inspect.ismethod(method) and method.__self__ is original:
                setattr(part, name, MethodType(method.__func__, part))
    return copied


def _copy_computed(module: nn.Module) -> dict[int, Any]:
    """Return copies, by id, of weights that hooks have computed: a deep copy would refuse them."""
    values = (value for part in module.modules() for value in vars(part).values())
    return {
        id(value): value.detach().clone()
        for value in values
        if isinstance(value, Tensor) and not value.is_leaf
    }


def copy_uncompiled(module: nn.Module) -> nn.Module:
    """Return a deep copy without compiled parts: the modules inside are in their places."""
    copied = copy_module(unwrap_compiled(module))
    for parent in list(copied.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None:
                parent._modules[name] = unwrap_compiled(child)
    return copied


def compile_like(module: nn.Module, other: nn.Module) -> nn.Module:
    """Return a module in the compiled wrapper of another module; as it is if that has none."""
    return type(other)(module, other.dynamo_ctx) if hasattr(other, "_orig_mod") else module


@contextmanager
def run_uncompiled(module: nn.Module) -> Iterator[None]:
    """Run the modules inside the compiled parts of a module."""
    if not any(is_compiled(part) for part in module.modules()):
        yield  # Setting the stance would import the compiler.
        return
    with torch.compiler.set_stance("force_eager"):
        yield

"""Another default device around the calls of the package, and around nothing else."""

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.optim import Optimizer

from lightning_prune import Pruner, Sparsity

CALLS = [
    (Pruner, name)
    for name in (
        "attach",
        "before_step",
        "detach",
        "follow",
        "load_state_dict",
        "mask",
        "mask_copy",
        "skip_step",
        "state_dict",
        "update",
    )
] + [(Sparsity, name) for name in ("update", "compute")]
REGISTRATIONS = [
    (Optimizer, "register_step_pre_hook"),
    (Optimizer, "register_step_post_hook"),
    (Optimizer, "register_load_state_dict_post_hook"),
]


def run_elsewhere(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs with ``meta`` as the default device."""

    def run(*arguments: Any, **options: Any) -> Any:
        with torch.device("meta"):
            return function(*arguments, **options)

    # The command reads from a traceback which packages an error has passed through.
    names = {**run.__globals__, "__name__": function.__module__}
    in_package = types.FunctionType(run.__code__, names, closure=run.__closure__)
    return functools.update_wrapper(in_package, function)


def register_elsewhere(register: Callable[..., Any]) -> Callable[..., Any]:
    """Return a registration of hooks that gives another default device to those of the package."""

    @functools.wraps(register)
    def run(owner: Any, hook: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        is_ours = getattr(hook, "__module__", "").startswith("lightning_prune")
        return register(owner, run_elsewhere(hook) if is_ours else hook, *arguments, **options)

    return run


@contextmanager
def elsewhere() -> Iterator[None]:
    """Let a tensor without a device, made in a call or hook of ours, be one without data."""
    wrapped = [(owner, name, run_elsewhere) for owner, name in CALLS]
    wrapped += [(owner, name, register_elsewhere) for owner, name in REGISTRATIONS]
    patches = [patch.object(o, name, wrap(getattr(o, name))) for o, name, wrap in wrapped]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in reversed(patches):
            each.stop()

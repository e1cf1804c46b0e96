"""Blocks that give generators, modes, tensors and loggers back as they were, also on errors."""

import logging
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Unlike `data_ptr`, which is for writing too, it does not end the sharing of memory.
_find_address: Callable[[Tensor], int] = vars(torch._C)["_data_address"]


@contextmanager
def keep_generators(*, seed: int | None = None) -> Iterator[None]:
    """Give the random number generators of Python, NumPy and torch back as they are now.

    It takes half a millisecond, most of it in NumPy. Generators of CUDA are included where CUDA is
    in use: this block does not start it.

    Args:
        seed: Seed of all generators inside the block; by default they go on from their state.

    Examples:
        >>> with keep_generators(seed=0):
        ...     first = torch.rand(1)
        >>> with keep_generators(seed=0):
        ...     print(first == torch.rand(1))
        tensor([True])
    """
    python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    count = torch.cuda.device_count() if on_cuda else 0
    try:
        with keep_torch_generators(*(torch.device("cuda", index) for index in range(count))):
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002
                torch.default_generator.manual_seed(seed)
                if on_cuda:
                    torch.cuda.manual_seed_all(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)  # noqa: NPY002


@contextmanager
def keep_torch_generators(*devices: torch.device) -> Iterator[None]:
    """Give torch's generators of the CPU and of CUDA devices back as they are now.

    Args:
        *devices: The devices in use; the CPU is always included.
    """
    with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
        yield


@contextmanager
def keep_modes(module: nn.Module) -> Iterator[None]:
    """Give each part of a module the mode back, training or evaluation, that it has now."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def keep_tensors(module: nn.Module, *, parameters: bool = True) -> Iterator[None]:
    """Give parameters and buffers the values back that they have now.

    Tensors that the block adds go; tensors that it deletes or gives another shape come back. This
    is for blocks that hardly write into parameters: a parameter takes memory for a copy only when
    torch first writes into it. Then it moves to other memory. Writes past torch, as by a view of
    numpy, are not undone.

    Args:
        module: The module.
        parameters: Whether to keep the parameters, too, or only the buffers.
    """
    put_back = _remember(module, copy_parameter=_copy_lazily if parameters else None)
    try:
        yield
    finally:
        put_back()


@contextmanager
def undo_on_error(module: nn.Module) -> Iterator[None]:
    """Give parameters and buffers the values back that they have now, if the block raises.

    The block may write into all of them: they are copied at once, and keep their place in memory.
    """
    put_back = _remember(module, copy_parameter=Tensor.clone)
    try:
        yield
    except BaseException:
        put_back()
        raise


@contextmanager
def keep_quiet(
    *loggers: str, level: int = logging.ERROR, warned: Sequence[str] = ()
) -> Iterator[None]:
    """Leave out log messages and warnings that are not about the user's own run.

    Args:
        *loggers: Names of the loggers; the empty name is that of the root.
        level: The least level that these loggers still report.
        warned: Regular expressions of the warnings to leave out.
    """
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    try:
        for logger in found:
            logger.setLevel(level)
        with warnings.catch_warnings():
            for message in warned:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, before in zip(found, levels, strict=True):
            logger.setLevel(before)


@contextmanager
def use_plain_kernels() -> Iterator[None]:
    """Run transformer layers of torch by the operations that fused kernels are made of."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


def _remember(
    module: nn.Module, *, copy_parameter: Callable[[Tensor], Tensor] | None
) -> Callable[[], None]:
    """Copy the tensors of a module, and return the function that puts the values back.

    Args:
        module: The module.
        copy_parameter: Copies a parameter; None for buffers only, which are copied at once.
    """
    registers: list[dict[str, Any]] = [part._buffers for part in module.modules()]
    values = {id(buffer): buffer.detach().clone() for buffer in module.buffers()}
    if copy_parameter is not None:
        registers += [part._parameters for part in module.modules()]
        values |= {id(each): copy_parameter(each.detach()) for each in module.parameters()}
    before = [(register, dict(register)) for register in registers]

    def put_back() -> None:
        with torch.no_grad():
            for register, named in before:
                _put_back(register, named, values)

    return put_back


def _put_back(
    register: dict[str, Any], before: Mapping[str, Tensor | None], values: Mapping[int, Tensor]
) -> None:
    """Fill a module's register of tensors as before.

    Args:
        register: Holds tensors by name.
        before: The tensors that it held before.
        values: Copies of those, by the tensors' ids.
    """
    for name in register.keys() - before.keys():
        del register[name]
    for name, tensor in before.items():
        if tensor is None:
            register[name] = None
            continue
        value, now = values[id(tensor)], register.get(name)
        # A tensor that has moved to another device stays there. Nothing can be written into a
        # tensor that inference mode has made.
        if now is None or now.shape != value.shape or now.is_inference():
            register[name] = now = tensor
        if not _shares_memory(now, value):
            now.copy_(value)


def _copy_lazily(tensor: Tensor) -> Tensor:
    """Return a copy that takes no memory until torch writes into either tensor.

    A tensor whose memory is not torch's own, such as numpy's, is copied at once.
    """
    try:
        copy: Tensor = tensor._lazy_clone()
    except RuntimeError:
        copy = tensor.clone()
    return copy


def _shares_memory(tensor: Tensor, copy: Tensor) -> bool:
    """Whether a tensor still shares memory with the lazy copy of it, and so is unchanged."""
    if type(copy) is not Tensor or {tensor.layout, copy.layout} != {torch.strided}:
        return False
    layouts = {(each.dtype, each.device, each.stride()) for each in (tensor, copy)}
    return len(layouts) == 1 and _find_address(tensor) == _find_address(copy)

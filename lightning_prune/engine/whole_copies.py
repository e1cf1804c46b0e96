"""Whole copies of sharded modules, for questions that shards cannot answer."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_prune.models.compiled import copy_module
from lightning_prune.models.sharding import find_class, reshard
from lightning_prune.tensors.shards import find_shard, gather_whole, is_sharded, local_part

Found = TypeVar("Found")

_CUTTING = "torch.distributed.fsdp", "torch.distributed.tensor"
"""The parts of torch whose hooks gather and cut."""


def find_from_whole(module: nn.Module, find: Callable[[nn.Module], Found]) -> Found:
    """Return the answer of a function of a module; of a sharded module, of a whole copy.

    The first process makes the copy on the CPU, and frees it at the end. It sends the answer to the
    others, so all processes go on with the same answer. Parameters are summed up one by one, from
    parts that are 0 elsewhere: about twice the traffic of a forward pass.

    Args:
        module: The module; if it is sharded, all processes call this together.
        find: Returns an answer that can be pickled; it leaves the module as it is.

    Raises:
        Exception: The error of ``find``, on all processes. In the others it is a ValueError or a
            RuntimeError.
    """
    if not has_shards(module):
        return find(module)
    is_first = torch.distributed.get_rank() == 0
    whole = _gather_tensors(module, is_wanted=is_first)
    found, error = None, None
    if is_first:
        try:
            found = find(_copy_without_shards(module, whole))
        except Exception as raised:  # of the model's own code
            error = raised
    del whole
    shared: Found = _share(found, error)
    return shared


def copy_whole(module: nn.Module) -> nn.Module:
    """Return a deep copy; of a sharded module, a whole copy on the CPU of each process.

    Args:
        module: The module; if it is sharded, all processes call this together.
    """
    if not has_shards(module):
        return copy_module(module)
    return _copy_without_shards(module, _gather_tensors(module, is_wanted=True))


def has_shards(module: nn.Module) -> bool:
    """Whether a parameter is sharded."""
    return any(map(is_sharded, module.parameters()))


def _share(found: Any, error: Exception | None) -> Any:
    """Return the answer of the first process in all processes, or raise the error there."""
    is_first = torch.distributed.get_rank() == 0
    told = None if error is None else (isinstance(error, ValueError), str(error))
    message = [found, told]
    torch.distributed.broadcast_object_list(message, src=0)
    found, told = message
    if is_first and error is not None:
        raise error
    if told is not None:
        is_value_error, words = told
        raise (ValueError if is_value_error else RuntimeError)(words)
    return found


def _gather_tensors(module: nn.Module, *, is_wanted: bool) -> dict[int, Tensor]:
    """Return sharded tensors as whole tensors on the CPU, by id; nothing where nothing is wanted.

    All processes call this together.
    """
    reshard(module)
    known: dict[int, Tensor] = {}
    for tensor in _find_sharded(module):
        whole = gather_whole(local_part(tensor), find_shard(tensor))
        if is_wanted:
            known[id(tensor)] = whole.cpu()
            if isinstance(tensor, nn.Parameter):
                trains = tensor.requires_grad
                known[id(tensor)] = nn.Parameter(known[id(tensor)], requires_grad=trains)
    return known


def _find_sharded(module: nn.Module) -> list[Tensor]:
    """Return the sharded tensors of a module, also those that hooks have computed, each once."""
    found: dict[int, Tensor] = {}
    for part in module.modules():
        for values in (part._parameters, part._buffers, vars(part)):
            found |= {id(each): each for each in values.values() if isinstance(each, Tensor)}
    return [tensor for tensor in found.values() if is_sharded(tensor)]


def _copy_without_shards(module: nn.Module, whole: Mapping[int, Tensor]) -> nn.Module:
    """Return a deep copy on the CPU; torch refuses to copy the classes of FSDP2.

    Args:
        module: The module.
        whole: The whole tensors, by the ids of the sharded tensors.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

    known: dict[int, Any] = dict(whole)
    sharded = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in module.modules():
        meshes = (value for value in vars(part).values() if isinstance(value, DeviceMesh))
        known |= {id(mesh): mesh for mesh in meshes}
    for part in sharded:
        kind = find_class(part)
        known[id(part)] = kind.__new__(kind)
        known[id(part._get_fsdp_state())] = _Nothing()  # holds groups of processes
    for part in sharded:
        reduced: Any = part.__reduce_ex__(2)  # by which `deepcopy` copies any object
        known[id(part)].__setstate__(deepcopy(reduced[2], known))
    copied = copy_module(module, known).cpu()
    _remove_hooks(copied)
    return copied


class _Nothing:
    """Stands for the state that only shards have."""


def _remove_hooks(module: nn.Module) -> None:
    """Remove the hooks of FSDP2 and of tensor parallelism."""
    for part in module.modules():
        registers = [value for name, value in vars(part).items() if name.endswith("_hooks")]
        for hooks in registers:
            for key, hook in list(hooks.items()) if isinstance(hooks, dict) else ():
                function = getattr(hook, "hook", hook)  # torch wraps those of loading
                if str(function.__module__).startswith(_CUTTING):
                    del hooks[key]

"""New statistics for the normalizations of a module, from batches that the user gives."""

import inspect
from collections.abc import Iterable, Mapping
from operator import length_hint
from typing import Any

import torch
from torch import nn

from lightning_prune.models.calls import Call, make_call
from lightning_prune.models.compiled import run_uncompiled, unwrap_compiled
from lightning_prune.models.progress import note_progress
from lightning_prune.models.statistics import (
    find_statistics,
    gather_statistics,
    write_statistics,
)
from lightning_prune.models.undisturbed import keep_generators, keep_modes, keep_tensors
from lightning_prune.tensors.shards import sum_replicas


def measure_statistics(module: nn.Module, batches: Iterable[Any], example: Call) -> None:
    """Give each normalization with running statistics the mean statistics of batches.

    All modules are in evaluation mode but these normalizations. Without such normalizations, no
    batch is read. Where several processes run, all of them call this together, each with
    batches of its own.

    Args:
        module: The module. Only running means, running variances and their counts change.
        batches: The batches, read once.
        example: A call of the module, which says what `take_arguments` takes from a batch.

    Raises:
        ValueError: If there is no batch, or ``forward`` does not take a batch.
    """
    norms = find_statistics(module)
    if not norms:
        return
    with keep_generators(), keep_modes(module), run_uncompiled(module), torch.no_grad():
        with keep_tensors(module, parameters=False), gather_statistics(norms) as sums:
            seen = torch.zeros_like(sums[0][:1])
            module.eval()
            for norm in norms:
                norm.train()
            for done, batch in enumerate(batches):
                note_progress(
                    "reading batches for new statistics", done, length_hint(batches) or None
                )
                call = take_arguments(module, batch, example)
                module(*call.arguments, **call.keywords)
                seen += 1
        sum_replicas([seen, *sums])
        if not seen:
            raise ValueError("need at least one batch, got statistics without a batch")
        write_statistics(norms, sums)


def take_arguments(module: nn.Module, batch: Any, example: Call) -> Call:
    """Return the arguments of ``forward`` in a batch: those that an example has.

    Args:
        module: The module.
        batch: A tensor; a tuple or list that begins with the arguments, as ``(images, labels)``
            does; or a mapping in which the arguments have names.
        example: A call of the module.

    Raises:
        ValueError: If the batch lacks an argument.

    Examples:
        >>> net, example = nn.Linear(2, 3), Call((torch.zeros(1, 2),), {})
        >>> take_arguments(net, (torch.ones(1, 2), "label"), example)
        Call(arguments=(tensor([[1., 1.]]),), keywords={})
        >>> take_arguments(net, {"label": 0, "input": torch.ones(1, 2)}, example)
        Call(arguments=(tensor([[1., 1.]]),), keywords={})
    """
    count, named = len(example.arguments), list(example.keywords)
    if isinstance(batch, Mapping):
        parameters = inspect.signature(unwrap_compiled(module).forward).parameters
        names = [*list(parameters)[:count], *named]
        call = Call((), {name: batch[name] for name in names if name in batch})
    else:
        items = batch if isinstance(batch, tuple | list) else [batch]
        call = Call(tuple(items[:count]), {})
    found = len(call.arguments) + len(call.keywords)
    if found < count + len(named):
        raise ValueError(
            f"need batches with the {count + len(named)} arguments of forward that the example "
            f"has, got statistics with {found} in a batch; write a dict of names, or a tuple"
        )
    return make_call(module, call)

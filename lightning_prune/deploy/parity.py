"""A file to deploy against its module: the calls, the answers and the zeros."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.models.calls import Call, make_call
from lightning_prune.models.comparison import relative_difference
from lightning_prune.models.examples import make_random_calls
from lightning_prune.models.free_sizes import FreeSizes, change_free_sizes, fixed_sizes
from lightning_prune.models.names import named_parameters, plain_name
from lightning_prune.models.progress import track_progress
from lightning_prune.models.prunable import prunable_weights
from lightning_prune.models.trees import find_tensors, move_to_cpu


def choose_tolerance(tolerance: float | None, default: float) -> float:
    """Return the largest difference that is allowed.

    Raises:
        ValueError: If it is negative.
    """
    if tolerance is None:
        return default
    if not tolerance >= 0:
        raise ValueError(f"need tolerance >= 0, got tolerance={tolerance}")
    return tolerance


def collect_calls(
    module: nn.Module,
    example: Call,
    inputs: Iterable[Any],
    any_batch: bool,
    free: FreeSizes = (),
) -> list[Call]:
    """Return the calls to compare outputs for: random ones, the example and the given inputs.

    Random batches have the size of the example; if any size will do, also 1 and one more sample.
    If other dimensions are free, a random batch has another size there.
    """
    sizes: list[int | None] = [example.batch_size]
    if any_batch and example.batch_size is not None:
        sizes = list(dict.fromkeys([example.batch_size, 1, example.batch_size + 1]))
    calls = [*make_random_calls(example, sizes), example]
    if any(free):
        calls += make_random_calls(change_free_sizes(example, free), [None])
    for given in inputs:
        calls.append(move_to_cpu(make_call(module, given)))
        _refuse_other_shapes(example, calls[-1], any_batch, free)
    return calls


def compare_answers(
    module: nn.Module,
    run: Callable[[Call], Sequence[Tensor]],
    calls: Sequence[Call],
    tolerance: float,
) -> float:
    """Return the largest difference of a file's outputs from the module's.

    Args:
        module: The module.
        run: Gives a call to the file, and returns the tensors among the outputs.
        calls: The calls of both.
        tolerance: The largest difference allowed.

    Raises:
        ValueError: If an output differs by more.
    """
    largest = 0.0
    for call in track_progress(calls, "comparing with the model"):
        expected = find_tensors(module(*call.arguments, **call.keywords))
        found = run(call)
        for place, (here, there) in enumerate(zip(expected, found, strict=True)):
            difference = relative_difference(here, there)
            if difference > tolerance:
                shapes = [list(tensor.shape) for tensor in call.tensors]
                raise ValueError(
                    f"need answers within tolerance={tolerance:g} of the module's, got a "
                    f"difference={difference:.3g} in output {place} for inputs of shapes {shapes}; "
                    "no file is written"
                )
            largest = max(largest, difference)
    return largest


def count_needed_zeros(module: nn.Module, program: torch.export.ExportedProgram) -> int:
    """Return how many entries are zero in the prunable weights that ``forward`` uses.

    Equal weights count once, as the file may hold them once.
    """
    names = program.graph_signature.inputs_to_parameters
    graph = deepcopy(program.graph)
    graph.eliminate_dead_code()  # as the exporter does
    parameters = named_parameters(module)
    used = {
        id(parameters[plain_name(names[node.name])])
        for node in graph.nodes
        if node.name in names and node.users
    }
    distinct = {
        (weight.shape, sha256(weight.detach().numpy().tobytes()).digest()): weight
        for weight in prunable_weights(module).values()
        if id(weight) in used
    }
    return sum(int((weight == 0).count_nonzero()) for weight in distinct.values())


def refuse_lost_zeros(zeros: int, needed: int) -> None:
    """Raise ValueError if a file has fewer zeros than the module needs."""
    if zeros < needed:
        raise ValueError(
            f"need the {needed:,} zeros of the weights in the file, got zeros={zeros:,}; "
            "no file is written"
        )


def _refuse_other_shapes(example: Call, call: Call, any_batch: bool, free: FreeSizes) -> None:
    start = 1 if any_batch else 0
    shapes = [[list(tensor.shape) for tensor in given.tensors] for given in (example, call)]
    here, there = (fixed_sizes(given, start, free) for given in (example, call))
    if here != there:
        but = " but for the first dimension" if any_batch else ""
        raise ValueError(
            f"need inputs of the example's shapes{but}, {shapes[0]}, got {shapes[1]}; the module "
            "does not take others when traced"
        )

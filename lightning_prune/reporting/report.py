"""A measurement of the size, multiplications, memory and latency that pruning has saved."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.deploy.compression import count_compressed_bytes
from lightning_prune.deploy.two_four import explain_tensorrt
from lightning_prune.models.calls import Call, make_call
from lightning_prune.models.compiled import copy_module
from lightning_prune.models.counting import Pass, Work, count
from lightning_prune.models.names import named_modules, owner_of, plain_name
from lightning_prune.models.progress import note_progress, show_progress, track_progress
from lightning_prune.models.prunable import as_matrix, prunable_weights
from lightning_prune.models.undisturbed import keep_generators
from lightning_prune.reporting.latency import BLOCKS, LEAST_BLOCKS, THREADS, Latency
from lightning_prune.reporting.records import LayerReport, Report
from lightning_prune.reporting.runtimes import measure_latencies
from lightning_prune.reporting.tensorrt import SPARSE
from lightning_prune.reporting.zeros import describe_pattern
from lightning_prune.tensors.shards import refuse_shards

_FILLING = 0.01  # of the size of the other weights: too small to matter, too large to be denormal


@check_arguments
def report(
    module: nn.Module,
    example: Any = None,
    *,
    dense: nn.Module | None = None,
    latency: bool = True,
    threads: int = THREADS,
    blocks: int = BLOCKS,
    progress: bool = True,
) -> Report:
    """Measure the size, multiplications, memory and latency that pruning has saved.

    Everything runs on copies in eval mode, on the device of the module. Weights, buffers,
    gradients, mode, hooks and random number generators of the module do not change.

    `torch.utils.flop_counter` counts multiplications while the operations run. Memory is the bytes
    of the tensors that are alive between two operations, without parameters and buffers; memory
    inside a kernel is not seen. Latencies are measured in turns, by default on one thread. ONNX
    Runtime needs ``lightning-prune[export]`` and runs on the CPU in float32.

    Args:
        module: The pruned module, with zeros in place or with removed channels.
        example: The input of ``forward``: a tensor, a tuple of positional or a dict of keyword
            arguments. By default the module's ``example_input_array``.
        dense: The module to compare with. By default a copy of ``module`` whose zeros are filled
            with small random numbers. Give the original if channels were removed.
        latency: Whether to measure latencies, the only part that takes long.
        threads: Number of threads that an operation may use on CPU.
        blocks: Number of pairs of blocks of calls, at least 6. A block takes about 10 ms, or one
            call. More blocks narrow the interval.
        progress: Whether to show a progress bar in a terminal.

    Raises:
        ValueError: If there is no example, an argument is out of range, or parameters are sharded.

    Examples:
        >>> net = nn.Sequential(nn.Linear(8, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
        >>> _ = nn.init.zeros_(net[0].weight[:2])
        >>> bought = report(net, torch.randn(1, 8), latency=False)
        >>> bought.layers[0].pattern, bought.layers[0].nonzeros
        ('channels: 2 of 4 outputs', 16)
        >>> bought.total.dense_macs, bought.total.effective_macs
        (40, 24)
    """
    _check(module, threads, blocks)
    call = make_call(module, example)
    latencies: tuple[Latency, ...] = ()
    failures: tuple[str, ...] = ()
    with keep_generators(), torch.no_grad(), show_progress(progress):
        pruned = _copy(module)
        full = _copy_without_zeros(pruned) if dense is None else _copy(dense)
        note_progress("counting multiplications", 0, 1)
        counted, counted_dense = count(pruned, call), count(full, make_call(full, call))
        layers = _report_layers(module, full, counted, counted_dense)
        if latency:
            latencies, failures = measure_latencies(full, pruned, call, threads, blocks)
    sparsity, emptied = _count_zeros(module)
    return Report(
        model=type(module).__name__,
        example=_describe_example(call),
        layers=layers,
        sparsity=sparsity,
        peak_bytes=counted.peak,
        dense_peak_bytes=counted_dense.peak,
        latencies=latencies,
        emptied=emptied,
        constant=_find_constant(layers, counted, {owner_of(name) for name in emptied}),
        notes=(*_uncounted_notes(layers, counted), *failures),
    )


def _check(module: nn.Module, threads: int, blocks: int) -> None:
    if threads < 1:
        raise ValueError(f"need threads >= 1, got threads={threads}")
    if blocks < LEAST_BLOCKS:
        raise ValueError(f"need blocks >= {LEAST_BLOCKS}, got blocks={blocks}")
    remedy = "load a checkpoint of it into the plain module"
    refuse_shards(dict(module.named_parameters()), wanted="report", remedy=remedy)


def _count_zeros(module: nn.Module) -> tuple[float, tuple[str, ...]]:
    """Return the sparsity of the prunable weights, and the names of those with zeros only."""
    weights = prunable_weights(module)
    kept = {name: int(weight.detach().count_nonzero()) for name, weight in weights.items()}
    entries = sum(weight.numel() for weight in weights.values())
    emptied = tuple(name for name, w in weights.items() if w.numel() and not kept[name])
    return 1 - sum(kept.values()) / entries if entries else 0.0, emptied


def _report_layers(
    module: nn.Module, dense: nn.Module, counted: Pass, counted_dense: Pass
) -> tuple[LayerReport, ...]:
    """Return a row for each module that holds parameters or multiplies, in the model's order."""
    held, held_dense = _parameters_by_owner(module), _parameters_by_owner(dense)
    owners = named_modules(module)
    kinds = {name: type(layer).__name__ for name, layer in (named_modules(dense) | owners).items()}
    busy = {name for done in (counted, counted_dense) for name, w in done.work.items() if w.macs}
    names = [name for name in kinds if name in held or name in held_dense or name in busy]
    return tuple(
        _report_layer(
            name,
            kinds[name],
            owners.get(name),
            parameters=held.get(name, {}),
            dense_parameters=held_dense.get(name, {}),
            work=counted.work.get(name, Work()),
            dense_work=counted_dense.work.get(name, Work()),
        )
        for name in track_progress(names, "compressing")
    )


def _report_layer(
    name: str,
    kind: str,
    owner: nn.Module | None,
    *,
    parameters: Mapping[str, Tensor],
    dense_parameters: Mapping[str, Tensor],
    work: Work,
    dense_work: Work,
) -> LayerReport:
    payload = b"".join(_to_bytes(parameter) for parameter in parameters.values())
    return LayerReport(
        name=name,
        kind=kind,
        dense_parameters=sum(p.numel() for p in dense_parameters.values()),
        parameters=sum(p.numel() for p in parameters.values()),
        nonzeros=sum(int(p.count_nonzero()) for p in parameters.values()),
        pattern=_describe_patterns(parameters, owner),
        tensorrt=_describe_tensorrt(parameters, owner),
        dense_macs=dense_work.macs,
        effective_macs=work.effective,
        unknown=tuple(dict.fromkeys(work.unknown)),
        dense_bytes=sum(p.nbytes for p in dense_parameters.values()),
        bytes=len(payload),
        compressed_bytes=count_compressed_bytes(payload),
        peak_bytes=work.peak,
    )


def _parameters_by_owner(module: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the parameters by the name of their module. A tied parameter comes once."""
    held: dict[str, dict[str, Tensor]] = {}
    for raw, parameter in module.named_parameters():
        name = plain_name(raw)
        held.setdefault(owner_of(name), {})[name] = parameter.detach()
    return held


def _describe_patterns(parameters: Mapping[str, Tensor], owner: nn.Module | None) -> str:
    if owner is None:
        return ""
    patterns = [
        describe_pattern(as_matrix(parameter, owner))
        for parameter in parameters.values()
        if parameter.ndim > 1
    ]
    return ", ".join(dict.fromkeys(patterns))


def _describe_tensorrt(parameters: Mapping[str, Tensor], owner: nn.Module | None) -> str:
    """Return why TensorRT cannot run a matrix on sparse tensor cores, or `SPARSE` if it can."""
    if owner is None:
        return ""
    reasons = [
        explain_tensorrt(owner, as_matrix(parameter, owner)) or SPARSE
        for parameter in parameters.values()
        if parameter.ndim > 1
    ]
    return ", ".join(dict.fromkeys(reasons))


def _to_bytes(parameter: Tensor) -> bytes:
    flat = parameter.contiguous().cpu().flatten()
    return flat.view(torch.uint8).numpy().tobytes()


def _find_constant(
    layers: Sequence[LayerReport], counted: Pass, emptied: set[str]
) -> tuple[str, ...]:
    """Return the names of modules with a constant output, without the emptied modules."""
    names = [
        layer.name
        for layer in layers
        if (work := counted.work.get(layer.name)) and work.would_vary and not work.varies
    ]
    names = [name for name in names if name not in emptied]
    return (*names, "output") if counted.constant else tuple(names)


def _uncounted_notes(layers: Sequence[LayerReport], counted: Pass) -> tuple[str, ...]:
    """Return a line for each module whose multiplications the counts leave out."""
    notes = [
        f"multiplications of {layer.name or layer.kind} are not known and not counted: it runs "
        f"{', '.join(layer.unknown)}"
        for layer in layers
        if layer.unknown
    ]
    unused = [
        layer.name or layer.kind
        for layer in layers
        if layer.pattern and layer.name not in counted.used
    ]
    return (*notes, f"not used with this example: {', '.join(unused)}") if unused else tuple(notes)


def _copy(module: nn.Module) -> nn.Module:
    return copy_module(module).eval().requires_grad_(False)


def _copy_without_zeros(module: nn.Module) -> nn.Module:
    """Return a copy that no kernel can tell from a dense module."""
    full = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(0)
    for parameter in full.parameters():
        if not parameter.is_floating_point():
            continue
        zeros = parameter == 0
        kept = parameter[~zeros].float()
        size = float(kept.square().mean().sqrt()) if kept.numel() else 1.0
        noise = torch.randn(parameter.shape, generator=generator, device="cpu")
        parameter[zeros] = (noise * (_FILLING * size)).to(parameter)[zeros]
    return full


def _describe_example(call: Call) -> str:
    return ", ".join(
        f"{' x '.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype).rpartition('.')[2]}"
        for tensor in call.tensors
    )

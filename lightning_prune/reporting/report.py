"""What pruning has bought: size, multiplications, memory and latency, without flattery."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from lightning_prune.deploy.compression import count_compressed_bytes
from lightning_prune.models.calls import Call, make_call
from lightning_prune.models.compiled import copy_module
from lightning_prune.models.counting import Pass, Work, count
from lightning_prune.models.names import owner_of, plain_name
from lightning_prune.models.prunable import output_axis, prunable_weights
from lightning_prune.models.undisturbed import keep_generators
from lightning_prune.reporting.latency import LEAST_BLOCKS, Latency
from lightning_prune.reporting.records import LayerReport, Report
from lightning_prune.reporting.runtimes import measure_latencies
from lightning_prune.reporting.zeros import pattern_of
from lightning_prune.tensors.shards import is_sharded

_FILLING = 0.01  # of the size of the other weights: too small to matter, too large to be denormal


def report(
    module: nn.Module,
    example: Any = None,
    *,
    dense: nn.Module | None = None,
    latency: bool = True,
    threads: int = 1,
    blocks: int = 51,
    progress: bool = True,
) -> Report:
    """Measure what pruning has bought: size, multiplications, memory and latency.

    Everything runs on copies in eval mode, where the module is: weights, buffers, gradients, mode,
    hooks and the random number generators are left as they are.

    Multiplications are counted as the operations run, by `torch.utils.flop_counter`. Memory is what
    tensors hold that are alive between two operations, without parameters and buffers; what a
    kernel uses inside is not seen. Latencies are measured in turns, one thread by default; those of
    ONNX Runtime need ``lightning-prune[export]`` and are on CPU, in float32.

    Args:
        module: The pruned module; its zeros may be in place, or its channels removed.
        example: What ``forward`` takes: a tensor, a tuple of positional or a dict of keyword
            arguments. By default the module's ``example_input_array``.
        dense: What to compare with; by default a copy whose zeros are filled with small random
            numbers. Give the original if weights were removed.
        latency: Whether to measure latencies, the only part that takes long.
        threads: Threads that one operation may use, on CPU.
        blocks: Pairs of blocks of calls, at least 6, each of about 10 ms or one call; more make
            the interval narrower.
        progress: Whether to show a bar meanwhile, in a terminal.

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
    with keep_generators(), torch.no_grad(), _bar(progress) as bar:
        pruned = _copy(module)
        full = _filled(pruned) if dense is None else _copy(dense)
        counted, counted_dense = count(pruned, call), count(full, call)
        layers = _layers(module, full, counted, counted_dense, bar)
        latencies: tuple[Latency, ...] = ()
        notes: tuple[str, ...] = ()
        if latency:
            latencies, notes = measure_latencies(full, pruned, call, threads, blocks, bar)
    weights = prunable_weights(module)
    entries = sum(weight.numel() for weight in weights.values())
    kept = sum(int(weight.detach().count_nonzero()) for weight in weights.values())
    emptied = tuple(
        name for name, w in weights.items() if w.numel() and not w.detach().count_nonzero()
    )
    return Report(
        model=type(module).__name__,
        example=_described(call),
        layers=layers,
        sparsity=1 - kept / entries if entries else 0.0,
        peak_bytes=counted.peak,
        dense_peak_bytes=counted_dense.peak,
        latencies=latencies,
        emptied=emptied,
        constant=_constant(layers, counted, {owner_of(name) for name in emptied}),
        notes=(*_unknown(layers, counted), *notes),
    )


def _check(module: nn.Module, threads: int, blocks: int) -> None:
    if threads < 1:
        raise ValueError(f"need threads >= 1, got threads={threads}")
    if blocks < LEAST_BLOCKS:
        raise ValueError(f"need blocks >= {LEAST_BLOCKS}, got blocks={blocks}")
    for name, parameter in module.named_parameters():
        if is_sharded(parameter):
            raise ValueError(
                f"need whole parameters to report on, got the sharded '{name}'; load a checkpoint "
                "of it into the plain module"
            )


def _bar(progress: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    shown = progress and Console().is_terminal
    return Progress(*columns, TimeRemainingColumn(), transient=True, disable=not shown)


def _layers(
    module: nn.Module, dense: nn.Module, counted: Pass, counted_dense: Pass, bar: Progress
) -> tuple[LayerReport, ...]:
    """Return a row for each module that holds parameters or multiplies, in the model's order."""
    held, held_dense = _held(module), _held(dense)
    kinds = {plain_name(name): type(layer).__name__ for name, layer in _named(dense, module)}
    busy = {name for done in (counted, counted_dense) for name, w in done.work.items() if w.macs}
    names = [name for name in kinds if name in held or name in held_dense or name in busy]
    rows = []
    for name in bar.track(names, description="compressing"):
        parameters = held.get(name, {})
        work = counted.work.get(name, Work())
        payload = b"".join(_bytes(parameter) for parameter in parameters.values())
        rows.append(
            LayerReport(
                name=name,
                kind=kinds[name],
                dense_parameters=sum(p.numel() for p in held_dense.get(name, {}).values()),
                parameters=sum(p.numel() for p in parameters.values()),
                nonzeros=sum(int(p.count_nonzero()) for p in parameters.values()),
                pattern=_pattern(parameters, module, name),
                dense_macs=counted_dense.work.get(name, Work()).macs,
                effective_macs=work.effective,
                unknown=tuple(dict.fromkeys(work.unknown)),
                dense_bytes=sum(p.nbytes for p in held_dense.get(name, {}).values()),
                bytes=len(payload),
                compressed_bytes=count_compressed_bytes(payload),
                peak_bytes=work.peak,
            )
        )
    return tuple(rows)


def _named(*modules: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for module in modules:
        yield from module.named_modules()


def _held(module: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the parameters by the name of the module that they belong to, each once."""
    held: dict[str, dict[str, Tensor]] = {}
    for raw, parameter in module.named_parameters():
        name = plain_name(raw)
        held.setdefault(owner_of(name), {})[name] = parameter.detach()
    return held


def _pattern(parameters: Mapping[str, Tensor], module: nn.Module, name: str) -> str:
    owner = {plain_name(n): layer for n, layer in module.named_modules()}.get(name)
    patterns = [
        pattern_of(parameter.transpose(0, output_axis(parameter, owner)))
        for parameter in parameters.values()
        if owner is not None and parameter.ndim > 1
    ]
    return ", ".join(dict.fromkeys(patterns))


def _bytes(parameter: Tensor) -> bytes:
    flat = parameter.contiguous().cpu().flatten()
    return flat.view(torch.uint8).numpy().tobytes()


def _constant(layers: Sequence[LayerReport], counted: Pass, emptied: set[str]) -> tuple[str, ...]:
    names = [
        layer.name
        for layer in layers
        if (work := counted.work.get(layer.name)) and work.would_vary and not work.varies
    ]
    names = [name for name in names if name not in emptied]
    return (*names, "output") if counted.constant else tuple(names)


def _unknown(layers: Sequence[LayerReport], counted: Pass) -> tuple[str, ...]:
    """Return in words what the counts leave out."""
    notes = [
        f"multiplications of {layer.name or layer.kind} are not known and not counted: it runs "
        f"{', '.join(layer.unknown)}"
        for layer in layers
        if layer.unknown
    ]
    idle = [
        layer.name or layer.kind
        for layer in layers
        if layer.pattern and layer.name not in counted.used
    ]
    return (*notes, f"not used with this example: {', '.join(idle)}") if idle else tuple(notes)


def _copy(module: nn.Module) -> nn.Module:
    return copy_module(module).eval().requires_grad_(False)


def _filled(module: nn.Module) -> nn.Module:
    """Return a copy without zeros, which no kernel could tell from a dense module."""
    full = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(0)
    for parameter in full.parameters():
        if not parameter.is_floating_point():
            continue
        zeros = parameter == 0
        kept = parameter[~zeros].float()
        size = float(kept.square().mean().sqrt()) if kept.numel() else 1.0
        noise = torch.randn(parameter.shape, generator=generator) * (_FILLING * size)
        parameter[zeros] = noise.to(parameter)[zeros]
    return full


def _described(call: Call) -> str:
    return ", ".join(
        f"{' x '.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype).rpartition('.')[2]}"
        for tensor in call.tensors
    )

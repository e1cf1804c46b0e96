"""A dense and a pruned module against each other, in torch and in ONNX Runtime."""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from lightning_prune.deploy.onnx import LIBRARIES, quiet_export, write_program
from lightning_prune.deploy.onnx_runtime import open_session
from lightning_prune.models.calls import Call, make_call
from lightning_prune.models.compiled import unwrap_compiled
from lightning_prune.models.errors import describe_error
from lightning_prune.models.progress import note_progress
from lightning_prune.models.tracing import trace
from lightning_prune.models.trees import move_to_cpu
from lightning_prune.reporting.latency import Contest, Latency, measure_latency


def measure_latencies(
    dense: nn.Module, pruned: nn.Module, call: Call, threads: int, blocks: int
) -> tuple[tuple[Latency, ...], tuple[str, ...]]:
    """Measure both modules in each runtime.

    Args:
        dense: Changed: moved to the CPU in float32.
        pruned: Changed in the same way.
        call: The call of both.
        threads: Threads that an operation may use, on CPU.
        blocks: Pairs of blocks of calls.

    Returns:
        The latencies, and notes on why a runtime is missing.
    """
    latencies: list[Latency] = []
    device = call.tensors[0].device.type if call.tensors else "cpu"
    modules = (dense, pruned)
    with torch.inference_mode(), use_threads(threads):
        calls = [open_in_torch(module, make_call(module, call)) for module in modules]
        contest = _make_contest("torch", device, threads, *calls)
        latencies.append(measure_latency(contest, blocks))
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        note = f"need {' and '.join(missing)}: pip install 'lightning-prune[export]'"
        return tuple(latencies), (f"not measured in ONNX Runtime: {note}",)
    note_progress("writing ONNX files", 0, 1)
    try:
        calls = [open_in_onnx_runtime(module, call, threads) for module in modules]
        contest = _make_contest("ONNX Runtime", "cpu", threads, *calls)
        latencies.append(measure_latency(contest, blocks))
    except Exception as error:  # of the exporter, or of the model's own code
        return tuple(latencies), (f"not measured in ONNX Runtime: {describe_error(error)}",)
    return tuple(latencies), ()


def open_in_torch(module: nn.Module, call: Call) -> Callable[[], object]:
    """Return a function that calls a module and waits for the result."""
    device = call.tensors[0].device if call.tensors else torch.device("cpu")

    def run() -> None:
        module(*call.arguments, **call.keywords)
        if device.type != "cpu":
            torch.accelerator.synchronize()

    return run


def open_in_onnx_runtime(module: nn.Module, call: Call, threads: int) -> Callable[[], object]:
    """Return a function that runs a module in ONNX Runtime.

    Args:
        module: Changed: moved to the CPU in float32.
        call: The arguments of ``forward``.
        threads: Threads that an operation may use.
    """
    call = move_to_cpu(call)
    arrays = [tensor.numpy() for tensor in call.tensors]
    with tempfile.TemporaryDirectory() as folder, quiet_export():
        path = Path(folder) / "module.onnx"
        write_program(trace(unwrap_compiled(module).cpu().float(), call), path)
        session = open_session(path, threads=threads)
    names = [node.name for node in session.get_inputs()]
    return partial(session.run, None, dict(zip(names, arrays, strict=True)))


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Let operations of torch use a number of threads on CPU, inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make_contest(
    runtime: str,
    device: str,
    threads: int,
    dense: Callable[[], object],
    pruned: Callable[[], object],
) -> Contest:
    return Contest(runtime=runtime, device=device, threads=threads, dense=dense, pruned=pruned)

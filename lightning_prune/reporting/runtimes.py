"""A dense and a pruned module against each other, in torch and in ONNX Runtime."""

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_prune.deploy import onnx_runtime
from lightning_prune.reporting.latency import Contest, Latency, measure_latency

_ONNX = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Call:
    """How both modules are called.

    Args:
        arguments: Positional arguments of ``forward``.
        keywords: Keyword arguments of ``forward``, in its order.
        threads: Threads that one operation may use, on CPU.
    """

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    threads: int

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among them, in the order of an ONNX file's inputs."""
        leaves = tree_leaves((self.arguments, self.keywords))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def latencies_of(
    dense: nn.Module, pruned: nn.Module, call: Call, blocks: int, bar: Progress
) -> tuple[tuple[Latency, ...], tuple[str, ...]]:
    """Return what was measured in each runtime, and why one is missing.

    Args:
        dense: Changed: moved to the CPU in float32.
        pruned: Changed likewise.
        call: How both are called.
        blocks: Pairs of blocks.
        bar: Shows how many are done.
    """
    latencies: list[Latency] = []
    task = bar.add_task("", total=2 * blocks)

    def measure(contest: Contest) -> None:
        bar.update(task, description=f"dense and pruned in turns, {contest.runtime}")
        latencies.append(measure_latency(contest, blocks, lambda: bar.advance(task)))

    with torch.inference_mode(), _threads(call.threads):
        measure(_in_torch(dense, pruned, call))
    missing = [name for name in _ONNX if importlib.util.find_spec(name) is None]
    if missing:
        note = f"need {' and '.join(missing)}: pip install 'lightning-prune[export]'"
        return tuple(latencies), (f"not measured in ONNX Runtime: {note}",)
    bar.update(task, description="writing ONNX files")
    try:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            measure(_in_onnx_runtime(dense, pruned, call, Path(folder)))
    except Exception as error:  # of whichever operation cannot be exported or run there
        return tuple(latencies), (f"not measured in ONNX Runtime: {_first_line(error)}",)
    return tuple(latencies), ()


def _in_torch(dense: nn.Module, pruned: nn.Module, call: Call) -> Contest:
    device = call.tensors[0].device if call.tensors else torch.device("cpu")

    def run(module: nn.Module) -> None:
        module(*call.arguments, **call.keywords)
        if device.type != "cpu":
            torch.accelerator.synchronize()

    return Contest(
        runtime="torch",
        device=device.type,
        threads=call.threads,
        dense=partial(run, dense),
        pruned=partial(run, pruned),
    )


def _in_onnx_runtime(dense: nn.Module, pruned: nn.Module, call: Call, folder: Path) -> Contest:
    arguments, keywords = tree_map_only(Tensor, _in_float32, (call.arguments, dict(call.keywords)))

    def session(module: nn.Module, name: str) -> Callable[[], object]:
        path = folder / f"{name}.onnx"
        plain_module = getattr(module, "_orig_mod", module).cpu().float()
        torch.onnx.export(
            plain_module, arguments, path, kwargs=keywords, dynamo=True, verbose=False
        )
        opened = onnx_runtime.session(path, threads=call.threads)
        names = [node.name for node in opened.get_inputs()]
        arrays = [_in_float32(tensor).numpy() for tensor in call.tensors]
        return partial(opened.run, None, dict(zip(names, arrays, strict=True)))

    return Contest(
        runtime="ONNX Runtime",
        device="cpu",
        threads=call.threads,
        dense=session(dense, "dense"),
        pruned=session(pruned, "pruned"),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from talking of what has nothing to do with the module."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_float32(tensor: Tensor) -> Tensor:
    return tensor.cpu().float() if tensor.is_floating_point() else tensor.cpu()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]

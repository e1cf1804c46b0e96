"""The latency of narrower models beside the dense model, in the runtime of a budget."""

from typing import Any

import torch
from torch import nn

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.deploy.files import need_libraries
from lightning_prune.deploy.onnx import LIBRARIES
from lightning_prune.models.calls import Call, make_call
from lightning_prune.models.compiled import copy_uncompiled
from lightning_prune.models.examples import make_random_calls
from lightning_prune.models.progress import show_progress
from lightning_prune.models.undisturbed import keep_generators
from lightning_prune.recipe.budgets import LatencyBudget
from lightning_prune.reporting.latency import BLOCKS, Contest, Latency, measure_latency
from lightning_prune.reporting.runtimes import open_in_onnx_runtime, open_in_torch, use_threads


class Stopwatch:
    """Measures modules in turns with a dense module, which is opened once.

    All run as copies in evaluation mode, in torch on the device of the dense module, in ONNX
    Runtime on the CPU in float32.

    Args:
        dense: The dense module; left as it is. Zeros in place are as slow as other weights.
        example: The arguments of ``forward``.
        budget: The runtime, the number of threads and the batch size.
        blocks: Number of pairs of blocks of calls, at least 6.

    Raises:
        ValueError: If the module cannot be traced or exported.
        ModuleNotFoundError: If ONNX Runtime is to be used and not installed.
    """

    def __init__(
        self, dense: nn.Module, example: Any, budget: LatencyBudget, blocks: int = BLOCKS
    ) -> None:
        self._budget, self._blocks = budget, blocks
        self._call = _resize(make_call(dense, example), budget.batch_size)
        self._dense = self._open(dense)

    def __call__(self, module: nn.Module) -> Latency:
        """Return the latencies of the dense module and another, measured in turns.

        Args:
            module: The other module; left as it is.
        """
        tensors = self._call.tensors
        in_torch = self._budget.runtime == "torch" and tensors
        contest = Contest(
            runtime="torch" if self._budget.runtime == "torch" else "ONNX Runtime",
            device=tensors[0].device.type if in_torch else "cpu",
            threads=self._budget.threads,
            dense=self._dense,
            pruned=self._open(module),
        )
        hidden = show_progress(False)  # the measurements of a table share a bar
        with torch.inference_mode(), use_threads(self._budget.threads), keep_generators(), hidden:
            return measure_latency(contest, self._blocks)

    def _open(self, module: nn.Module) -> Any:
        """Return a function that runs a copy of a module once."""
        with keep_generators(), torch.no_grad():
            copied = copy_uncompiled(module).eval().requires_grad_(False)
            if self._budget.runtime == "torch":
                return open_in_torch(copied, make_call(copied, self._call))
            need_libraries(*LIBRARIES)
            return open_in_onnx_runtime(copied, self._call, self._budget.threads)


@check_arguments
def measure_model_latency(
    dense: nn.Module,
    shrunk: nn.Module,
    example: Any,
    budget: LatencyBudget,
    *,
    blocks: int = BLOCKS,
) -> Latency:
    """Measure a shrunk model in turns with the dense model, in the runtime of a budget.

    The speedup of the result is more reliable than the milliseconds: load and clock of the machine
    change between two measurements, but not between two turns. To compare with the prediction of a
    `LatencyCost`, divide its ``dense_ms`` by the speedup, and by the ends of the interval.

    Args:
        dense: The dense model, or the model with zeros in place; left as it is.
        shrunk: The model without the zero channels; left as it is.
        example: The arguments of ``forward``.
        budget: The runtime, the number of threads and the batch size.
        blocks: Number of pairs of blocks of calls, at least 6.

    Raises:
        ValueError: If a model cannot be traced or exported.
        ModuleNotFoundError: If ONNX Runtime is to be used and not installed.
    """
    return Stopwatch(dense, example, budget, blocks)(shrunk)


def _resize(call: Call, batch_size: int | None) -> Call:
    """Return a call with another number of samples, of random numbers."""
    if batch_size is None or call.batch_size == batch_size:
        return call
    return next(iter(make_random_calls(call, [batch_size])))

"""The time that pruning takes in a step without an update, on a device."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.parts.gpu.updates import wait
from lightning_prune import OneShotSchedule, Pruner

WARM_UP = 10


class Block(nn.Module):
    """A layer of a decoder as GPT-2 has it, without dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the words after attention to earlier words, and a layer for each word."""
        queries = self.attention(self.first(x)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0)
        attended = nn.functional.scaled_dot_product_attention(
            *queries.transpose(2, 3).unbind(0), is_causal=True
        )
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


def build_decoder() -> nn.Module:
    """Return the layers of GPT-2 small, without embeddings: 85 million weights in 48 tensors."""
    return nn.Sequential(*(Block(768, 12) for _ in range(12)))


def build_lenet() -> nn.Module:
    """Return LeNet-300-100."""
    return nn.Sequential(
        nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model, the shape of a batch, and the bar of the isolated ratio.

    Args:
        build: Makes the model.
        shape: Shape of a batch.
        dtype: Precision of the model.
        bar: The largest isolated ratio.
        is_bound_by_device: Whether the device, not the host, is the slower side.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dtype: torch.dtype
    bar: float
    is_bound_by_device: bool


STEPS = {
    "GPT-2 small, bound by the GPU": Workload(
        build=build_decoder,
        shape=(16, 1024, 768),
        dtype=torch.bfloat16,
        bar=1.003,
        is_bound_by_device=True,
    ),
    "GPT-2 small, bound by the host": Workload(
        build=build_decoder,
        shape=(1, 32, 768),
        dtype=torch.bfloat16,
        bar=1.02,
        is_bound_by_device=False,
    ),
    "LeNet-300-100": Workload(
        build=build_lenet,
        shape=(128, 784),
        dtype=torch.float32,
        bar=1.03,
        is_bound_by_device=False,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a step, and of the parts inside of our calls and hooks."""

    step: float
    inside: float


@dataclass(kw_only=True)
class Clock:
    """Times the calls of a step: by the host, or by events on a CUDA device.

    Args:
        by_device: Whether events on the device time.
    """

    by_device: bool
    spans: list[tuple[Any, Any]] = field(default_factory=list)

    @contextmanager
    def time(self) -> Iterator[None]:
        """Time what runs inside of this context."""
        begin = self._now()
        yield
        self.spans.append((begin, self._now()))

    def wrap_hooks(self, optimizer: torch.optim.Optimizer) -> None:
        """Time the hooks where they hang.

        An optimizer of another class would count as one that may move pruned weights.
        """
        for hooks in optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks:
            for key, hook in hooks.items():
                hooks[key] = self._wrap(hook)

    def _wrap(self, hook: Any) -> Any:
        def run(*arguments: Any) -> Any:
            with self.time():
                return hook(*arguments)

        return run

    def read(self) -> float:
        """Return the seconds of all spans since the last reading; the device must be idle."""
        spans, self.spans = self.spans, []
        if self.by_device:
            return sum(begin.elapsed_time(end) for begin, end in spans) / 1e3
        return sum(end - begin for begin, end in spans)

    def _now(self) -> Any:
        if not self.by_device:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def time_steps(workload: Workload, device: torch.device, steps: int) -> Times:
    """Train with masks at 0.9, and return the medians."""
    by_device = workload.is_bound_by_device and device.type == "cuda"
    clock = Clock(by_device=by_device)

    torch.manual_seed(0)
    model = workload.build().to(device, workload.dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    pruner = Pruner(sparsity=0.9, schedule=OneShotSchedule(end=0, unit="step"))
    pruner.attach(model, optimizer, steps=steps + WARM_UP)
    clock.wrap_hooks(optimizer)
    batch = torch.randn(workload.shape, device=device, dtype=workload.dtype)
    found = []
    for _ in range(steps + WARM_UP):
        wait(device)
        start = time.perf_counter()
        optimizer.zero_grad()
        model(batch).float().square().mean().backward()
        with clock.time():
            pruner.before_step(optimizer)
        optimizer.step()
        handed_over = time.perf_counter() - start
        wait(device)
        whole = time.perf_counter() - start
        found.append((whole if by_device else handed_over, clock.read()))
    pruner.detach()
    whole, inside = (statistics.median(each) for each in zip(*found[WARM_UP:], strict=True))
    return Times(step=whole, inside=inside)

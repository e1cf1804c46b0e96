"""The memory of full updates of the masks."""

import contextlib
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.kit.judging import Bar
from benchmarks.kit.memory import MIB, count_process_bytes, record, reset_process_peak, span
from benchmarks.kit.recording import write_markdown_row
from benchmarks.parts.memory.training import name_dtype
from lightning_prune import (
    Allocation,
    Criterion,
    ERKAllocation,
    GlobalAllocation,
    MagnitudeCriterion,
    PolynomialSchedule,
    PrunedTensor,
    Pruner,
    UniformAllocation,
)

HEADINGS = (
    "update with",
    "scores",
    "weights",
    "largest in float32, MiB",
    "torch's peak, MiB more",
    "numpy's",
    "both, in copies of the largest",
    "the process's",
)
COUNTS = 2 * MIB  # bytes of an update beside the copy
LARGE = MIB // 8  # the default of glibc, in bytes
UPDATES = ("first update", "second update")
SHAPES = [  # 25 M weights in 60 tensors: the shape of a matrix, and the number of them
    ((2048, 2048), 1),
    ((1024, 1024), 8),
    ((1024, 512), 16),
    ((512, 400), 16),
    ((256, 160), 19),
]
HALF_THEN_ALL = PolynomialSchedule(begin=0, end=1, every=1, unit="step", initial=0.5, power=1)

Watch = Callable[[str], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class SquareCriterion(Criterion):
    """Squared weights: scores that the engine cannot read in place, and so holds."""

    def score(self, tensor: PrunedTensor, state: dict[str, Tensor]) -> Tensor:
        """Return the squares."""
        return tensor.weights.square()


@dataclass(frozen=True, kw_only=True)
class Update:
    """A full update of the masks, the costlier of two.

    Args:
        allocation: The allocation.
        criterion: The criterion.
        dtype: Type of the weights.
        device: Device of the weights.
        largest: Entries of the largest tensor.
        weights: Entries of all tensors.
        torch: The peak of torch, less the bytes in use before or after the update, if more.
        numpy: The peak of numpy and Python, less the bytes in use before.
        process: The peak of the process, less the bytes in use before.
    """

    allocation: Allocation
    criterion: Criterion
    dtype: torch.dtype
    device: torch.device
    largest: int
    weights: int
    torch: int
    numpy: int
    process: int

    @property
    def copy(self) -> int:
        """Bytes of the largest tensor in single precision."""
        return self.largest * torch.float32.itemsize

    @property
    def both(self) -> int:
        """The bytes of torch and of numpy, as if both peaks came at once."""
        return self.torch + self.numpy

    @property
    def is_held(self) -> bool:
        """Whether the engine holds the scores."""
        return isinstance(self.criterion, SquareCriterion)

    @property
    def allowed(self) -> int:
        """Bytes that an update may take.

        Scores that are read in place may take one copy of the largest tensor. Held scores take
        those of a pool, and a bit for each weight until all masks are chosen; a byte on an
        accelerator.
        """
        if not self.is_held:
            return self.copy + COUNTS
        pooled = self.weights if self.allocation.shares_budget else self.largest
        waiting = self.weights // 8 if self.device.type == "cpu" else self.weights
        return pooled * torch.float32.itemsize + waiting + self.copy + COUNTS

    def write_row(self) -> str:
        """Return a row of the table."""
        return write_markdown_row(
            type(self.allocation).__name__,
            "held" if self.is_held else "read in place",
            name_dtype(self.dtype),
            f"{self.copy / MIB:.2f}",
            f"{self.torch / MIB:.2f}",
            f"{self.numpy / MIB:.2f}",
            f"{self.both / self.copy:.2f}",
            f"{self.process / MIB:.1f}",
        )

    def set_bars(self) -> Iterator[Bar]:
        """Yield the bar on the memory at the peak."""
        name = f"update with {type(self.allocation).__name__} of {name_dtype(self.dtype)}"
        name += ", scores held" if self.is_held else ""
        most = self.allowed / MIB
        yield Bar(name=f"{name}, more MiB at the peak", value=self.both / MIB, most=most)


def build_matrices(scale: float, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return matrices of many sizes, which compute nothing."""
    shapes = [shape for shape, count in SHAPES for _ in range(count)]
    layers = [
        nn.Linear(columns, round(rows * scale), bias=False, dtype=dtype, device=device)
        for rows, columns in shapes
    ]
    return nn.ModuleList(layers)


def make_two_updates(
    model: nn.Module, allocation: Allocation, criterion: Criterion, watch: Watch
) -> None:
    """Prune to half of the sparsity, then to all of it, each in a context that watches."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(
        sparsity=0.9, schedule=HALF_THEN_ALL, allocation=allocation, criterion=criterion
    )
    pruner.attach(model, optimizer, steps=2)
    for name in UPDATES:
        with watch(name):
            pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()


@contextlib.contextmanager
def watch_numpy(peaks: list[int], name: str) -> Iterator[None]:
    """Note the peak of numpy and Python in a named span."""
    with span(name):
        tracemalloc.start()
        yield
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()


@contextlib.contextmanager
def watch_process(peaks: list[int], name: str) -> Iterator[None]:
    """Note the peak of the process, less the memory before."""
    reset_process_peak(LARGE)
    before = count_process_bytes("VmRSS")
    yield
    peaks.append(count_process_bytes("VmHWM") - before)


def measure_update(
    allocation: Allocation,
    criterion: Criterion,
    dtype: torch.dtype,
    scale: float,
    device: torch.device,
) -> Update:
    """Return the costlier of two updates, as torch and numpy see it, and as Linux sees it."""
    of_numpy: list[int] = []
    of_process: list[int] = []

    def run(device: torch.device) -> None:
        model = build_matrices(scale, dtype, device)
        make_two_updates(model, allocation, criterion, partial(watch_numpy, of_numpy))

    recording = record(run, device)
    model = build_matrices(scale, dtype, device)
    make_two_updates(model, allocation, criterion, partial(watch_process, of_process))
    sizes = [parameter.numel() for parameter in model.parameters()]
    return Update(
        allocation=allocation,
        criterion=criterion,
        dtype=dtype,
        device=device,
        largest=max(sizes),
        weights=sum(sizes),
        torch=max(map(recording.find_excess, UPDATES)),
        numpy=max(of_numpy),
        process=max(of_process),
    )


def measure_all_updates(scale: float, device: torch.device) -> Iterator[Update]:
    """Yield the rows of the table, each with other answers or another type of weights."""
    magnitude, squares = MagnitudeCriterion(), SquareCriterion()
    for allocation in (UniformAllocation(), ERKAllocation(), GlobalAllocation()):
        yield measure_update(allocation, magnitude, torch.float32, scale, device)
    yield measure_update(GlobalAllocation(), magnitude, torch.bfloat16, scale, device)
    for allocation in (UniformAllocation(), GlobalAllocation()):
        yield measure_update(allocation, squares, torch.float32, scale, device)

"""What pruning takes of memory: `python benchmarks/memory.py`.

Reads every allocation and release of torch from its profiler, so that the numbers are exact and
have no noise, and prints

- the masks as they are held, in bytes an entry: at most an entry of the weight's type on a CPU, one
  byte elsewhere; and in a state, in bits an entry: one, and a few bytes a tensor,
- training steps in which no update is due, in a plain loop and in a Trainer: how much higher the
  peak is than without pruning, at most the masks; and how many new tensors with as many bytes as a
  weight has entries a step makes more than without, none,
- a full update of the masks of 25 M weights in 60 tensors, the first or the second, whichever takes
  more: how much more memory is in use at most than before or after it, one copy of the largest
  tensor in single precision and 2 MiB of counts. What numpy takes beside torch is added to that, as
  if both peaks came at once. The second opinion is that of Linux on the process.

Prints tables, as Markdown. Exits with 1 if a target is missed.
"""

import argparse
import contextlib
import ctypes
import gc
import io
import itertools
import json
import logging
import os
import re
import sys
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it says when a profile starts and stops

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader

from lightning_prune import (
    Allocation,
    ERKAllocation,
    GlobalAllocation,
    OneShotSchedule,
    PolynomialSchedule,
    Pruner,
    PruningCallback,
    UniformAllocation,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import machine

MIB = 2**20
M_MMAP_THRESHOLD = -3  # of glibc
SMALL_CHANGE = 4096  # bytes a step of counts, losses and what is logged
COUNTS = 2 * MIB  # bytes of an update beside the copy
STATE_BYTES_A_TENSOR = 16
SETTLED, LAST = 2, 5  # the steps that are compared
UPDATES = ("first update", "second update")
SHAPES = [  # 25 M weights in 60 tensors
    ((2048, 2048), 1),
    ((1024, 1024), 8),
    ((1024, 512), 16),
    ((512, 400), 16),
    ((256, 160), 19),
]
HALF_THEN_ALL = PolynomialSchedule(begin=0, end=1, every=1, unit="step", initial=0.5, power=1)

# -- what torch allocates --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recording:
    """All allocations and releases on one kind of device, and the spans of time that were named.

    Args:
        events: When, and how many bytes; negative if released.
        spans: When each began and ended.
    """

    events: Sequence[tuple[float, int]]
    spans: dict[str, tuple[float, float]]

    def live_before(self, span: str) -> int:
        """Return the bytes in use when a span begins."""
        return sum(size for at, size in self.events if at < self.spans[span][0])

    def live_after(self, span: str) -> int:
        """Return the bytes in use when a span ends."""
        return sum(size for at, size in self.events if at < self.spans[span][1])

    def peak(self, span: str) -> int:
        """Return the most bytes in use at any time of a span."""
        sizes = [size for _, size in self._during(span)]
        return max(itertools.accumulate(sizes, initial=self.live_before(span)))

    def extra(self, span: str) -> int:
        """Return how many more bytes a span uses at most than are in use before or after it."""
        return self.peak(span) - max(self.live_before(span), self.live_after(span))

    def allocations(self, span: str, at_least: int) -> int:
        """Return how many allocations of so many bytes, or more, a span makes."""
        return sum(size >= at_least for _, size in self._during(span))

    def _during(self, span: str) -> Iterator[tuple[float, int]]:
        begin, end = self.spans[span]
        return ((at, size) for at, size in self.events if begin <= at < end)


def recorded(run: Callable[[torch.device], object], device: torch.device) -> Recording:
    """Run something that names spans by `record_function`, all its tensors being new."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    gc.collect()
    with profile(activities=activities, profile_memory=True) as profiler:
        run(device)
        gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        trace = json.loads(file.read_text())["traceEvents"]
    return Recording(
        events=sorted(
            (event["ts"], event["args"]["Bytes"])
            for event in trace
            if event["name"] == "[memory]"
            and (event["args"]["Device Type"] == 0) == (device.type == "cpu")
        ),
        spans={
            event["name"]: (event["ts"], event["ts"] + event["dur"])
            for event in trace
            if event.get("cat") == "user_annotation"
        },
    )


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """Name a span of time, with what nobody refers to released before its begin and its end."""
    gc.collect()
    with record_function(name):
        yield
        gc.collect()


def memory_of_process(kind: str) -> int:
    """Return bytes of this process in memory: now ("VmRSS"), or at most ("VmHWM")."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{kind}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


# -- a small training ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Training:
    """A model of three matrices, and what trains it.

    Args:
        width: Entries of the inputs; the matrices have 2, 4 and 2 times the square of it.
        dtype: Of the weights.
        optimizer: Its name.
    """

    width: int
    dtype: torch.dtype = torch.float32
    optimizer: str = "AdamW"

    def model(self) -> nn.Module:
        """Return the model."""
        width, hidden = self.width, 2 * self.width
        return nn.Sequential(
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, width),
        ).to(self.dtype)

    def optimizer_of(self, parameters: Any) -> torch.optim.Optimizer:
        """Return the optimizer; a fused one makes no new tensors, which hides none of ours."""
        if self.optimizer == "AdamW":
            return torch.optim.AdamW(parameters)
        if self.optimizer == "AdamW, fused":
            return torch.optim.AdamW(parameters, fused=True)
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True)

    @property
    def entries(self) -> int:
        """Entries of what is pruned."""
        return 8 * self.width**2

    @property
    def smallest(self) -> int:
        """Entries of the smallest weight."""
        return 2 * self.width**2


def make_step(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: Pruner | None) -> None:
    """Make one step of training, and leave the gradients."""
    parameter = next(model.parameters())
    inputs = torch.ones(4, parameter.shape[1], dtype=parameter.dtype, device=parameter.device)
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    if pruner is not None:
        pruner.before_step(optimizer)
    optimizer.step()


def pruned_at_once() -> dict[str, Any]:
    """Return the arguments for masks that are there from the first step on."""
    return {"sparsity": 0.9, "schedule": OneShotSchedule(end=0)}


def plain_loop(training: Training, *, pruned: bool) -> Callable[[torch.device], None]:
    """Return a training in a plain loop."""

    def run(device: torch.device) -> None:
        model = training.model().to(device)
        optimizer = training.optimizer_of(model.parameters())
        pruner = Pruner(**pruned_at_once()) if pruned else None
        if pruner is not None:
            pruner.attach(model, optimizer, steps=LAST + 1)
        for index in range(LAST + 1):
            with span(f"step {index}"):
                make_step(model, optimizer, pruner)

    return run


class Module(LightningModule):
    """The training as a LightningModule."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.training_of = training
        self.model = training.model()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss."""
        return self.model(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return self.training_of.optimizer_of(self.parameters())


class Spans(Callback):
    """Names the spans from each batch to the next; to be the first callback."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End the last and begin the next."""
        self._open.close()
        self._open.enter_context(span(f"step {batch_idx}"))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the last."""
        self._open.close()


def in_a_trainer(training: Training, *, pruned: bool) -> Callable[[torch.device], None]:
    """Return the training in a Trainer."""

    def run(device: torch.device) -> None:
        data = torch.ones(4 * (LAST + 1), training.width, dtype=training.dtype)
        callbacks: list[Callback] = [Spans()]
        if pruned:
            callbacks.append(PruningCallback(**pruned_at_once()))
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = Trainer(
                accelerator=device.type,
                devices=1,
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=callbacks,
            )
            trainer.fit(Module(training), DataLoader(data, batch_size=4))

    return run


# -- masks -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Masks:
    """What the masks of one training take.

    Args:
        training: Which.
        device: Where.
        held: Bytes in use after attaching, an update and two steps that were not before.
        state: Bytes of all tensors in the state.
        tensors: How many tensors are pruned.
    """

    training: Training
    device: torch.device
    held: int
    state: int
    tensors: int

    @property
    def wanted(self) -> int:
        """The most bytes an entry."""
        return self.training.dtype.itemsize if self.device.type == "cpu" else 1

    def row(self) -> str:
        """Return its row of the table."""
        entries = self.training.entries
        return (
            f"| {_name(self.training.dtype)} | {self.device.type} | {self.held / entries:.4f} "
            f"| {self.wanted} | {8 * self.state / entries:.4f} |"
        )

    def missed(self) -> Iterator[str]:
        """Yield what is not as it should be."""
        name, entries = f"masks of {_name(self.training.dtype)}", self.training.entries
        if self.held > self.wanted * entries + SMALL_CHANGE:
            yield f"{name}: {self.held / entries:.4f} bytes an entry, {self.wanted} are wanted"
        wanted = entries / 8 + STATE_BYTES_A_TENSOR * self.tensors
        if self.state > wanted:
            yield f"{name}: {self.state:,} bytes in the state, {wanted:,.0f} are wanted"


def measure_masks(training: Training, device: torch.device) -> Masks:
    """Return what its masks take."""
    state: dict[str, Any] = {}

    def run(device: torch.device) -> None:
        model = training.model().to(device)
        optimizer = training.optimizer_of(model.parameters())
        make_step(model, optimizer, None)
        with span("attach, update and two steps"):
            pruner = Pruner(**pruned_at_once())
            pruner.attach(model, optimizer, steps=LAST + 1)
            for _ in range(2):
                make_step(model, optimizer, pruner)
        state.update(pruner.state_dict())

    recording = recorded(run, device)
    name = "attach, update and two steps"
    leaves = torch.utils._pytree.tree_leaves(state)
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in leaves
        if isinstance(t, Tensor)
    }
    return Masks(
        training=training,
        device=device,
        held=recording.live_after(name) - recording.live_before(name),
        state=sum(storages.values()),
        tensors=len(state["masks"]),
    )


# -- steps -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What a settled step takes, without pruning and with it.

    Args:
        training: Which.
        loop: What runs it.
        peaks: The most bytes in use.
        held: Bytes in use afterwards.
        large: New tensors a step that have as many bytes as the smallest weight has entries.
        all: New tensors a step.
    """

    training: Training
    loop: str
    peaks: tuple[int, int]
    held: tuple[int, int]
    large: tuple[float, float]
    all: tuple[float, float]

    @property
    def name(self) -> str:
        """What it is called in the table."""
        return f"{self.loop} | {self.training.optimizer} | {_name(self.training.dtype)}"

    @property
    def higher(self) -> int:
        """By how many bytes the peak is higher with pruning."""
        return self.peaks[1] - self.peaks[0]

    @property
    def masks(self) -> int:
        """How many more bytes are in use after a step."""
        return self.held[1] - self.held[0]

    def row(self) -> str:
        """Return its row of the table."""
        return (
            f"| {self.name} | {self.peaks[0] / MIB:.3f} | {self.peaks[1] / MIB:.3f} "
            f"| {self.higher / MIB:.3f} | {self.masks / MIB:.3f} | {_more(self.large)} "
            f"| {_more(self.all)} |"
        )

    def missed(self) -> Iterator[str]:
        """Yield what is not as it should be."""
        name = self.name.replace(" |", ",")
        if self.higher > self.masks + SMALL_CHANGE:
            yield (
                f"step in {name}: the peak is {self.higher / MIB:.3f} MiB higher, "
                f"{self.masks / MIB:.3f} of masks are wanted at most"
            )
        if self.large[1] > self.large[0]:
            yield f"step in {name}: {_more(self.large)} more tensors as large as a weight, 0 wanted"


def measure_steps(training: Training, loop: str, device: torch.device) -> Steps:
    """Return what its steps take, without pruning and with it."""
    make = {"plain loop": plain_loop, "Trainer": in_a_trainer}[loop]
    both = [recorded(make(training, pruned=pruned), device) for pruned in (False, True)]
    spans = [f"step {index}" for index in range(SETTLED, LAST)]

    def of_both(number: Callable[[Recording], Any]) -> tuple[Any, Any]:
        return number(both[0]), number(both[1])

    def a_step(recording: Recording, at_least: int) -> float:
        return sum(recording.allocations(name, at_least) for name in spans) / len(spans)

    return Steps(
        training=training,
        loop=loop,
        peaks=of_both(lambda recording: max(map(recording.peak, spans))),
        held=of_both(lambda recording: recording.live_after(spans[-1])),
        large=of_both(lambda recording: a_step(recording, training.smallest)),
        all=of_both(lambda recording: a_step(recording, 1)),
    )


# -- updates ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a full update of the masks takes, the costlier of two.

    Args:
        allocation: Where.
        dtype: Of the weights.
        entries: Of all of them.
        largest: Entries of the largest.
        torch: How many more bytes torch had in use at most than before or after it.
        numpy: How many more than before numpy and Python had.
        process: How many more than before the process had.
    """

    allocation: Allocation
    dtype: torch.dtype
    entries: int
    largest: int
    torch: int
    numpy: int
    process: int

    @property
    def copy(self) -> int:
        """Bytes of the largest tensor in single precision."""
        return self.largest * torch.float32.itemsize

    def row(self) -> str:
        """Return its row of the table."""
        extra = self.torch + self.numpy
        return (
            f"| {type(self.allocation).__name__} | {_name(self.dtype)} | {self.copy / MIB:.2f} "
            f"| {self.torch / MIB:.2f} | {self.numpy / MIB:.2f} | {extra / self.copy:.2f} "
            f"| {self.process / MIB:.1f} |"
        )

    def missed(self) -> Iterator[str]:
        """Yield what is not as it should be."""
        extra = self.torch + self.numpy
        if extra > self.copy + COUNTS:
            yield (
                f"update with {type(self.allocation).__name__} of {_name(self.dtype)}: "
                f"{extra / MIB:.2f} MiB more at most, {(self.copy + COUNTS) / MIB:.2f} are wanted "
                "(a copy of the largest tensor in single precision, and "
                f"{COUNTS / MIB:g} MiB)"
            )


def many_matrices(scale: float, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return matrices of many sizes, of which nothing is computed."""
    shapes = [shape for shape, count in SHAPES for _ in range(count)]
    layers = [
        nn.Linear(columns, round(rows * scale), bias=False, dtype=dtype, device=device)
        for rows, columns in shapes
    ]
    return nn.ModuleList(layers)


def two_updates(
    model: nn.Module,
    allocation: Allocation,
    watched: Callable[[str], contextlib.AbstractContextManager[None]],
) -> None:
    """Prune to half of the sparsity, then to all of it, and watch both."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(sparsity=0.9, schedule=HALF_THEN_ALL, allocation=allocation)
    pruner.attach(model, optimizer, steps=2)
    for name in UPDATES:
        with watched(name):
            pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()


def measure_update(
    allocation: Allocation, dtype: torch.dtype, scale: float, device: torch.device
) -> Update:
    """Return what the costlier of two updates takes: first for torch and numpy, then for Linux."""
    numpys, processes = [], []

    @contextlib.contextmanager
    def traced(name: str) -> Iterator[None]:
        with span(name):
            tracemalloc.start()
            yield
            numpys.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    @contextlib.contextmanager
    def high_water(name: str) -> Iterator[None]:
        gc.collect()
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MIB // 8)  # its default, which else grows
        libc.malloc_trim(0)  # else what was free before would not count
        Path("/proc/self/clear_refs").write_text("5")  # let the most be what is now
        before = memory_of_process("VmRSS")
        yield
        processes.append(memory_of_process("VmHWM") - before)

    recording = recorded(
        lambda device: two_updates(many_matrices(scale, dtype, device), allocation, traced), device
    )
    model = many_matrices(scale, dtype, device)
    two_updates(model, allocation, high_water)
    sizes = [parameter.numel() for parameter in model.parameters()]
    return Update(
        allocation=allocation,
        dtype=dtype,
        entries=sum(sizes),
        largest=max(sizes),
        torch=max(map(recording.extra, UPDATES)),
        numpy=max(numpys),
        process=max(processes),
    )


# -- tables ----------------------------------------------------------------------------------------


def mask_rows(width: int, device: torch.device) -> Iterator[Masks]:
    """Yield the rows of the first table."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        yield measure_masks(Training(width=width, dtype=dtype), device)


def step_rows(width: int, device: torch.device) -> Iterator[Steps]:
    """Yield the rows of the second table."""
    for optimizer in ("SGD, fused", "AdamW, fused", "AdamW"):
        training = Training(width=width, optimizer=optimizer)
        for loop in ("plain loop", "Trainer"):
            yield measure_steps(training, loop, device)
    low = Training(width=width, optimizer="AdamW, fused", dtype=torch.bfloat16)
    yield measure_steps(low, "plain loop", device)


def update_rows(scale: float, device: torch.device) -> Iterator[Update]:
    """Yield the rows of the third table."""
    for allocation in (UniformAllocation(), ERKAllocation(), GlobalAllocation()):
        yield measure_update(allocation, torch.float32, scale, device)
    yield measure_update(GlobalAllocation(), torch.bfloat16, scale, device)


def printed(header: str, rows: Iterator[Masks] | Iterator[Steps] | Iterator[Update]) -> list[str]:
    """Print a table row by row, and return what its rows miss."""
    print("", header, "|" + "---|" * (header.count("|") - 1), sep="\n")
    missed = []
    for row in rows:
        print(row.row(), flush=True)
        missed += row.missed()
    return missed


def main() -> None:
    """Measure all, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=512, help="of the network that is trained")
    parser.add_argument("--scale", type=float, default=1.0, help="of the 25 M weights")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    gc.freeze()  # what was imported need not be looked through each time
    print(machine())
    missed = [
        *printed(
            "| masks of | device | bytes an entry | wanted, at most | bits an entry of a state |",
            mask_rows(arguments.width, device),
        ),
        *printed(
            "| step in | optimizer | weights | peak without, MiB | with | more | masks "
            "| more new tensors a step as large as a weight | of any size |",
            step_rows(arguments.width, device),
        ),
        *printed(
            "| update with | weights | largest in float32, MiB | torch's peak, MiB more "
            "| numpy's | both, in copies of the largest | the process's |",
            update_rows(arguments.scale, device),
        ),
    ]
    print("", "\n".join(f"missed: {miss}" for miss in missed) or "every target is met", sep="\n")
    sys.exit(int(bool(missed)))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _more(both: tuple[float, float]) -> str:
    return f"{both[1] - both[0]:g}"


if __name__ == "__main__":
    main()

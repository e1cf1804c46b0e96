"""The bytes of masks, in memory and in a state."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.kit.judging import Bar
from benchmarks.kit.memory import record, span
from benchmarks.kit.recording import write_markdown_row
from benchmarks.parts.memory.training import (
    LAST,
    Training,
    make_step,
    name_dtype,
    prune_at_once,
)
from lightning_prune import Pruner

HEADINGS = (
    "masks of",
    "device",
    "bytes an entry",
    "wanted, at most",
    "bits an entry of a state",
)
SLACK = 4096  # bytes a step of counts, losses and logged values
STATE_BYTES_A_TENSOR = 16
WORK = "attach, update and two steps"


@dataclass(frozen=True, kw_only=True)
class Masks:
    """The masks of a training.

    Args:
        training: The training.
        device: The device of the weights.
        held: Bytes in use after attaching, an update and two steps, less those before.
        state: Bytes of all tensors in the state.
        tensors: Number of pruned tensors.
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

    def write_row(self) -> str:
        """Return a row of the table."""
        entries = self.training.entries
        return write_markdown_row(
            name_dtype(self.training.dtype),
            self.device.type,
            f"{self.held / entries:.4f}",
            self.wanted,
            f"{8 * self.state / entries:.4f}",
        )

    def set_bars(self) -> Iterator[Bar]:
        """Yield the bars of both sizes."""
        name, entries = f"masks of {name_dtype(self.training.dtype)}", self.training.entries
        most = self.wanted * entries + SLACK
        yield Bar(name=f"{name}, bytes in memory", value=self.held, most=most)
        most = entries / 8 + STATE_BYTES_A_TENSOR * self.tensors
        yield Bar(name=f"{name}, bytes in the state", value=self.state, most=most)


def measure_masks(training: Training, device: torch.device) -> Masks:
    """Return the bytes of the masks of a training."""
    state: dict[str, Any] = {}

    def run(device: torch.device) -> None:
        model = training.build_model().to(device)
        optimizer = training.make_optimizer(model.parameters())
        make_step(model, optimizer, None)
        with span(WORK):
            pruner = Pruner(**prune_at_once())
            pruner.attach(model, optimizer, steps=LAST + 1)
            for _ in range(2):
                make_step(model, optimizer, pruner)
        state.update(pruner.state_dict())

    recording = record(run, device)
    return Masks(
        training=training,
        device=device,
        held=recording.count_after(WORK) - recording.count_before(WORK),
        state=count_bytes(state),
        tensors=len(state["masks"]),
    )


def measure_all_masks(width: int, device: torch.device) -> Iterator[Masks]:
    """Yield the rows of the table, each with another type of weights."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        yield measure_masks(Training(width=width, dtype=dtype), device)


def count_bytes(state: Any) -> int:
    """Return the bytes of all tensors in a state; shared storage counts once."""
    leaves = torch.utils._pytree.tree_leaves(state)
    storages = {
        leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes()
        for leaf in leaves
        if isinstance(leaf, Tensor)
    }
    return sum(storages.values())

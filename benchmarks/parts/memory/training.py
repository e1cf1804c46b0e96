"""A small training, in a plain loop and in a Trainer, with a named span for each step."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.kit.memory import span
from benchmarks.kit.recording import hide_output
from benchmarks.kit.training import make_quiet_trainer
from lightning_prune import OneShotSchedule, Pruner, PruningCallback

SETTLED, LAST = 2, 5  # the first and the last step that is compared

Run = Callable[[torch.device], None]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A model of three matrices, and an optimizer.

    Args:
        width: Entries of an input; the matrices have 2, 4 and 2 times the square of it.
        dtype: Type of the weights.
        optimizer: Name of the optimizer: ``"AdamW"``, ``"AdamW, fused"`` or ``"SGD, fused"``.
    """

    width: int
    dtype: torch.dtype = torch.float32
    optimizer: str = "AdamW"

    def build_model(self) -> nn.Module:
        """Return the model."""
        width, hidden = self.width, 2 * self.width
        return nn.Sequential(
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, width),
        ).to(self.dtype)

    def make_optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """Return the optimizer; a fused optimizer makes no tensors that could hide ours."""
        if self.optimizer == "AdamW":
            return torch.optim.AdamW(parameters)
        if self.optimizer == "AdamW, fused":
            return torch.optim.AdamW(parameters, fused=True)
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True)

    @property
    def entries(self) -> int:
        """Entries of all pruned weights."""
        return 8 * self.width**2

    @property
    def smallest(self) -> int:
        """Entries of the smallest weight."""
        return 2 * self.width**2


def name_dtype(dtype: torch.dtype) -> str:
    """Return the name of a type, as ``float32``."""
    return str(dtype).removeprefix("torch.")


def prune_at_once() -> dict[str, Any]:
    """Return the arguments that prune before the first step."""
    return {"sparsity": 0.9, "schedule": OneShotSchedule(end=0)}


def make_step(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: Pruner | None) -> None:
    """Make a step of training, and leave the gradients."""
    parameter = next(model.parameters())
    inputs = torch.ones(4, parameter.shape[1], dtype=parameter.dtype, device=parameter.device)
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    if pruner is not None:
        pruner.before_step(optimizer)
    optimizer.step()


def make_plain_loop(training: Training, *, is_pruned: bool) -> Run:
    """Return a function that trains in a plain loop."""

    def run(device: torch.device) -> None:
        model = training.build_model().to(device)
        optimizer = training.make_optimizer(model.parameters())
        pruner = Pruner(**prune_at_once()) if is_pruned else None
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
        self.make_optimizer = training.make_optimizer
        self.model = training.build_model()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss."""
        return self.model(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return self.make_optimizer(self.parameters())


class Spans(Callback):
    """Names the spans from each batch to the next; it must be the first callback."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End the last span, and begin the next."""
        self._open.close()
        self._open.enter_context(span(f"step {batch_idx}"))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the last span."""
        self._open.close()


def make_trainer_run(training: Training, *, is_pruned: bool) -> Run:
    """Return a function that trains in a Trainer."""

    def run(device: torch.device) -> None:
        data = torch.ones(4 * (LAST + 1), training.width, dtype=training.dtype)
        callbacks: list[Callback] = [Spans()]
        if is_pruned:
            callbacks.append(PruningCallback(**prune_at_once()))
        with hide_output():
            trainer = make_quiet_trainer(*callbacks, accelerator=device.type, max_epochs=1)
            trainer.fit(Module(training), DataLoader(data, batch_size=4))

    return run


LOOPS = {"plain loop": make_plain_loop, "Trainer": make_trainer_run}

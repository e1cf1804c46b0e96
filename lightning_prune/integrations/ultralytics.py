"""Pruning inside the trainer of Ultralytics: YOLO26, YOLO11, YOLOv8 and others.

Ultralytics is AGPL-3.0. This file imports nothing of it: the trainer is known by the names that it
passes to callbacks.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.engine.host import Host, Progress, make_host_clock, refuse_going_back
from lightning_prune.engine.overview import describe
from lightning_prune.engine.pruner import Pruner
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.targets import SparsityTargets
from lightning_prune.reporting.pruning import TableSize, print_pruning_table

FILE = "pruning.pt"
"""The file beside ``last.pt`` that holds the masks."""


class PruningYoloCallbacks:
    """Prunes a model gradually while the trainer of Ultralytics trains it.

    Write ``PruningYoloCallbacks(sparsity=0.9).add_to(model)`` before ``model.train(...)``. The
    weights are masked in place, and so is the average of the weights. Therefore ``best.pt`` and
    ``last.pt`` hold zeros, and ``model.export`` needs no code of this package. A file
    ``pruning.pt`` with the masks is beside ``last.pt``, for ``model.train(resume=True)``.

    Ultralytics has no callback before it clips gradients, so it clips those of pruned weights, too.
    Until the final sparsity is reached, each epoch counts as the best so far. So ``best.pt`` is as
    sparse as ``last.pt``, and ``patience`` counts from there.

    The values ``sparsity`` and ``sparsity_target`` are in ``results.csv``, and go to the loggers of
    Ultralytics, beside the learning rates.

    Args:
        sparsity: Final fraction of zeros of each pruned tensor, in [0, 1], 0.9 by default; or one
            for each glob of parameter or module names. None leaves a tensor dense.
        example: For `ChannelPattern` and most budgets, the arguments of the model's ``forward``.
            By default two images of the size that is trained.
        table: Whether the tables are ``"short"`` (at most 30 lines), ``"full"`` or ``"off"``.
        **answers: All other answers of `Pruner`: ``schedule``, ``criterion``, ``pattern`` and so
            on.

    Raises:
        ValueError: If an argument is out of range, or two of them clash.
        TypeError: If an argument is of another kind, or unknown.
    """

    def __init__(
        self,
        sparsity: SparsityTargets | None = None,
        *,
        example: Any = None,
        table: TableSize = "short",
        **answers: Any,
    ) -> None:
        self._begin(Pruner(sparsity=sparsity, **answers), example, table)

    @classmethod
    @check_arguments
    def from_recipe(
        cls, recipe: Recipe, *, example: Any = None, table: TableSize = "short"
    ) -> "PruningYoloCallbacks":
        """Return the callbacks of a recipe.

        Args:
            recipe: The answers.
            example: For `ChannelPattern`, the arguments of the model's ``forward``.
            table: How much of the tables is printed.

        Raises:
            ValueError: If the recipe goes back to earlier weights, which needs Lightning.
        """
        refuse_going_back(recipe)
        callbacks = cls.__new__(cls)
        callbacks._begin(Pruner.from_recipe(recipe), example, table)
        return callbacks

    @check_arguments
    def _begin(self, pruner: Pruner, example: Any, table: TableSize) -> None:
        self.pruner, self.example, self.table = pruner, example, table
        self._host = Host(pruner)
        self._progress: _TrainerProgress
        self._tries = self._steps = 0  # the steps that were tried, and made, at the last batch
        self._has_landed = False  # at the end of the last epoch

    def __reduce__(self) -> tuple[Callable[..., "PruningYoloCallbacks"], tuple[Any, ...]]:
        """Travel into the processes of several GPUs as the recipe alone."""
        return _make_again, (self.recipe, self.example, self.table)

    @property
    def recipe(self) -> Recipe:
        """All answers."""
        return self.pruner.recipe

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks by qualified parameter name, where the parameters are; True keeps."""
        return self.pruner.masks

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in the pruned tensors together, counted from the masks."""
        return self.pruner.sparsity

    def _repr_html_(self) -> str:
        return describe(self.pruner).to_html()

    def add_to(self, model: Any) -> None:
        """Add the callbacks to a model of Ultralytics.

        Args:
            model: A model, such as ``YOLO("yolo26n.pt")``.

        Raises:
            TypeError: If it takes no callbacks.
        """
        if not hasattr(model, "add_callback"):
            raise TypeError(
                "need a model of Ultralytics, such as YOLO('yolo26n.pt'), got "
                f"{type(model).__name__}; run pip install ultralytics (its license is AGPL-3.0)"
            )
        for event in (
            "on_train_start",
            "on_train_epoch_start",
            "on_train_batch_end",
            "on_train_epoch_end",
            "on_model_save",
            "on_train_end",
            "teardown",
        ):
            model.add_callback(event, getattr(self, event))

    def on_train_start(self, trainer: Any) -> None:
        """Begin, or continue from ``last.pt``; weights and optimizer are restored by now."""
        self.pruner.detach(completed=False)
        self.pruner.forget_state()
        if trainer.resume:
            self._host.load(_find_masks(trainer), trainer.model)
        progress = self._progress = _TrainerProgress(trainer)
        is_example_known = self.example is not None or not self.recipe.needs_example
        self.pruner.attach(
            trainer.model,
            trainer.optimizer,
            clocks=lambda schedule: make_host_clock(progress, schedule),
            hook=True,
            example=self.example if is_example_known else _make_images(trainer),
        )
        self._tries, self._steps = trainer.ema.updates, self.pruner.steps[0]
        self._has_landed = self._host.has_landed
        self._print_table("To be pruned")

    def on_train_epoch_start(self, trainer: Any) -> None:
        """Count batches from 0; take back the masks of ``last.pt`` if the trainer goes back."""
        self._progress.begin_epoch()
        if getattr(trainer, "nan_recovery_attempts", 0):  # not in older versions
            self._host.go_back(trainer.wdir / FILE)

    def on_train_batch_end(self, trainer: Any) -> None:
        """Count the batch, and look whether a scaler has skipped the step."""
        self._progress.batch += 1
        if self.recipe.chosen_criterion.gathers:  # else there is nothing to forget
            tries, steps = trainer.ema.updates, self.pruner.steps[0]
            if tries != self._tries and steps == self._steps:
                self.pruner.skip_step(trainer.optimizer)
            self._tries, self._steps = tries, steps

    def on_train_epoch_end(self, trainer: Any) -> None:
        """Mask the average of the weights, which will be validated and saved."""
        self.pruner.mask_copy(trainer.ema.ema)
        if not self._has_landed:
            trainer.best_fitness = None
            trainer.stopper.best_fitness = 0.0
        self._has_landed = self._host.has_landed
        trainer.lr |= self._host.read_values()

    def on_model_save(self, trainer: Any) -> None:
        """Save masks, counts and statistics beside ``last.pt``."""
        self._host.save(trainer.wdir / FILE)

    def on_train_end(self, trainer: Any) -> None:
        """Remove the hooks; the pruned weights stay zero."""
        self.pruner.detach()
        self._print_table("Pruned")

    def teardown(self, trainer: Any) -> None:
        """Leave no hook behind after an exception, and in the other processes of several GPUs."""
        self.pruner.detach(completed=False)

    def _print_table(self, title: str) -> None:
        is_parallel = distributed.is_available() and distributed.is_initialized()
        is_first = not is_parallel or distributed.get_rank() == 0
        print_pruning_table(self.pruner, title, self.table, is_first=is_first)


class _TrainerProgress(Progress):
    """The progress of a trainer of Ultralytics, read off batches.

    The number of steps is unknown: the warm-up lets the accumulated batches grow from 1.

    Args:
        trainer: The trainer, when training starts.

    Attributes:
        batch: The batches of the epoch that are done.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._apart = trainer.accumulate  # the largest number of batches between two steps
        self.batch = 0

    def begin_epoch(self) -> None:
        """Count from 0. If memory ran out, batches are now smaller, and more are accumulated."""
        self.batch = 0
        self._apart = max(self._apart, self._trainer.accumulate)

    @property
    def is_last(self) -> bool:
        """Whether fewer batches are left than a step needs."""
        return bool(self._done + self._apart >= self._planned)

    @property
    def fraction(self) -> float:
        """Completed batches over planned batches."""
        return self._done / self._planned

    @property
    def epochs(self) -> float:
        """The epochs that are done."""
        return self._done / len(self._trainer.train_loader)

    @property
    def planned_epochs(self) -> float:
        """The epochs that are asked for; infinity under a limit of time."""
        return math.inf if self._trainer.args.time else float(self._trainer.epochs)

    @property
    def planned_steps(self) -> None:
        """Unknown."""
        return

    @property
    def unknown_end(self) -> str:
        """The limit of time, if there is a limit."""
        hours = self._trainer.args.time
        return f"time={hours}; give epochs instead of time" if hours else ""

    @property
    def _done(self) -> int:
        return int(self._trainer.epoch * len(self._trainer.train_loader) + self.batch)

    @property
    def _planned(self) -> float:
        return self.planned_epochs * len(self._trainer.train_loader)


def _make_again(recipe: Recipe, example: Any, table: TableSize) -> PruningYoloCallbacks:
    return PruningYoloCallbacks.from_recipe(recipe, example=example, table=table)


def _find_masks(trainer: Any) -> Path:
    """Return the file with the masks of the checkpoint that training resumes from.

    Raises:
        ValueError: If masks are not saved beside this checkpoint.
    """
    file = Path(trainer.args.resume)
    if file.name != "last.pt":
        raise ValueError(
            f"need last.pt to resume from, beside which the masks are, got {file}; write "
            f"YOLO('{file.with_name('last.pt')}').train(resume=True)"
        )
    return file.with_name(FILE)


def _make_images(trainer: Any) -> Tensor:
    """Return two black images of the size that is trained."""
    channels = trainer.data.get("channels", 3)
    size = trainer.args.imgsz
    return torch.zeros(2, channels, size, size, device=trainer.device)

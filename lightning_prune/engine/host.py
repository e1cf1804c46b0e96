"""Hosts: what any trainer tells the engine, and what the engine tells any trainer.

A host of a trainer does five things. It attaches the `Pruner` with the clocks of a `Progress`, and
with ``hook=True`` if the trainer has no call between the gradients and the step. It tells of steps
that are skipped, which a hook sees alone. It masks averaged copies, saves the state beside the
weights, and logs the values: for these three it has a `Host`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from lightning_prune.deploy.checkpoints import read_checkpoint, write_checkpoint
from lightning_prune.engine.digests import describe_shards, refuse_other_weights
from lightning_prune.engine.groups import Group
from lightning_prune.engine.pruner import Pruner
from lightning_prune.recipe.clocks import Clock, make_clock
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.schedules import Schedule

_ROUNDING = 1e-9  # a mean of targets is a sum of floats


class Progress(ABC):
    """The progress of a trainer, in all units of schedules."""

    @property
    @abstractmethod
    def is_last(self) -> bool:
        """Whether no optimizer steps again after the present step."""

    @property
    @abstractmethod
    def fraction(self) -> float:
        """The share of the planned training that is done, in [0, 1]."""

    @property
    @abstractmethod
    def epochs(self) -> float:
        """The epochs that are done."""

    @property
    @abstractmethod
    def planned_epochs(self) -> float:
        """The epochs that are planned; infinity if that is not known."""

    @property
    @abstractmethod
    def planned_steps(self) -> int | None:
        """The steps of the optimizer at the end, with those before a resume; None if unknown."""

    @property
    @abstractmethod
    def unknown_end(self) -> str:
        """The settings that leave the end unknown, and the remedy; empty if it is known."""


def make_host_clock(progress: Progress, schedule: Schedule) -> Clock:
    """Return the clock of a trainer; at the last planned step it returns the schedule's end.

    The clock returns the completed steps that it is called with, or the epochs or the fraction that
    the trainer has reached.

    Args:
        progress: The progress of the trainer.
        schedule: The schedule that sets the unit.

    Raises:
        ValueError: If the unit is a fraction and the end of training is unknown, or the plan ends
            before ``end``.
    """
    if schedule.unit == "step":
        by_steps = make_clock(schedule, progress.planned_steps, None)
        if progress.planned_steps is None:
            return by_steps
        # If a scaler has skipped steps, the last step has a lower number than planned.
        return lambda done: schedule.end if progress.is_last else by_steps(done)
    if schedule.unit == "epoch":
        if schedule.end > progress.planned_epochs:
            raise ValueError(
                f"need end within the {progress.planned_epochs:g} planned epochs, got "
                f"end={schedule.end} with unit='epoch'; lower end or train longer"
            )
        return lambda done: schedule.end if progress.is_last else progress.epochs
    if progress.unknown_end:
        raise ValueError(
            "need a known end of training for a schedule with unit='fraction', got "
            f"{progress.unknown_end}, or count in steps: "
            "PolynomialSchedule(begin=1000, end=8000, unit='step')"
        )
    return lambda done: 1.0 if progress.is_last else progress.fraction


def refuse_going_back(recipe: Recipe) -> None:
    """Raise ValueError if a recipe goes back to earlier weights, which only Lightning lets us do.

    Args:
        recipe: The answers.
    """
    for name in ("rewind", "tolerance"):
        if getattr(recipe, name) is not None:
            raise ValueError(
                f"need a recipe that never goes back to earlier weights, got {name}="
                f"{getattr(recipe, name)}; train with Lightning and PruningCallback"
            )


class Host:
    """Copies, files and values of a training under pruning, for any trainer.

    Args:
        pruner: The engine.
    """

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner
        self._choices: int | None = None  # at the last masking of copies
        self._logged: tuple[int, Sequence[Group]] | None = None  # at the last news

    def forget(self) -> None:
        """Mask copies at the next call, and have news: a training or an epoch begins."""
        self._choices = self._logged = None

    def mask_copies(self, copies: Iterable[nn.Module]) -> None:
        """Mask averaged copies of the model, if masks were chosen since the last call.

        Between two choices an average of zeros stays zero.

        Args:
            copies: All averaged copies, or their wrappers.
        """
        if self._pruner.choices != self._choices:
            self._choices = self._pruner.choices
            for copy in copies:
                self._pruner.mask_copy(copy)

    def take_news(self) -> bool:
        """Return whether there was an update, or another tensor came, since the last call."""
        before, self._logged = self._logged, (self._pruner.updates, self._pruner.groups)
        return before != self._logged

    def read_values(self) -> dict[str, float]:
        """Return the values that a trainer logs, by name."""
        values = {
            "sparsity": self._pruner.sparsity,
            "sparsity_target": self._pruner.sparsity_target,
        }
        if self._pruner.recipe.pattern.couples_tensors:
            values["parameter_sparsity"] = self._pruner.parameter_sparsity
        for expense in self._pruner.spending:
            values |= {expense.unit: expense.share, f"{expense.unit}_target": expense.target}
        return values

    @property
    def has_landed(self) -> bool:
        """Whether the model is now as sparse, or as cheap, as it will be in the end."""
        pruner = self._pruner
        if not pruner.tensors or any(tensor.suspended is not None for tensor in pruner.tensors):
            return False  # all weights are frozen, or in a dense phase
        if pruner.recipe.budgets:
            return pruner.spending.is_met
        return pruner.sparsity_target >= pruner.final_sparsity - _ROUNDING

    def save(self, path: Path, *, writes: bool = True) -> None:
        """Save masks, counts and statistics into a file, whole or not at all.

        Args:
            path: The file.
            writes: Whether this process writes. All processes must call this together.
        """
        state = self._pruner.state_dict() | describe_shards(self._pruner.tensors)
        if writes:
            write_checkpoint(state, path)

    def load(self, path: Path, model: nn.Module) -> list[int]:
        """Give a saved state to the next `Pruner.attach`, and return the steps of each optimizer.

        Args:
            path: The file.
            model: The model, with the weights that were saved beside the file.

        Raises:
            ValueError: If the file is missing or damaged, or the weights are others.
        """
        state = read_checkpoint(path, argument="path")
        refuse_other_weights(state, model)
        self._pruner.load_state_dict(state)
        return list(state["steps"])

    def go_back(self, path: Path) -> None:
        """Take over the masks of a file, for a model with the weights that were saved beside it."""
        self._pruner.go_back(read_checkpoint(path, argument="path"))

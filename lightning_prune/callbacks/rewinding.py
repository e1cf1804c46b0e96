"""Returning to an early step under the masks: lottery tickets and learning-rate rewinding."""

from copy import deepcopy
from typing import Any, ClassVar

from torch.optim import Optimizer

from lightning_prune.callbacks.clock import make_trainer_clock, predict_moment
from lightning_prune.callbacks.namespace import LightningModule, Trainer
from lightning_prune.callbacks.snapshots import (
    collect_tensors,
    copy_to_cpu,
    gather_copies,
    refuse_averages,
    restore_optimizer,
    restore_tensors,
)
from lightning_prune.callbacks.steering import Steering
from lightning_prune.engine.pruner import Pruner
from lightning_prune.recipe.clocks import Clock
from lightning_prune.recipe.rewind import Rewind
from lightning_prune.recipe.schedules import Schedule


class Rewinder(Steering):
    """Takes the snapshot of a training and restores it in place after each change of the masks.

    The rewinder updates the masks only at the first batch start after a step. So the gradients that
    a step accumulates all belong to the same weights.

    Args:
        rewind: The answers of the user.
        pruner: The engine, not yet attached.
        trainer: The Trainer, at ``on_train_start``.
        state: A restored `state_dict`; empty for a new training.
        is_resumed: Whether the count of steps continues from a checkpoint.

    Raises:
        ValueError: If rewinding does not support the training: several optimizers or averaged
            weights.
    """

    key: ClassVar[str] = "rewind"

    def __init__(
        self,
        rewind: Rewind,
        pruner: Pruner,
        trainer: Trainer,
        *,
        state: dict[str, Any],
        is_resumed: bool,
    ) -> None:
        self.rewind, self.pruner, self.trainer = rewind, pruner, trainer
        _find_only_optimizer(trainer)
        refuse_averages(trainer, "rewind")
        self._snapshot_step = 0 if trainer.fast_dev_run else rewind.to  # type: ignore[union-attr]
        self._clock = make_trainer_clock(trainer, pruner.recipe.schedule, is_resumed=is_resumed)
        self._moment = -1.0
        self._point: float | None = None
        self._steps: int | None = None
        self._state = dict(state)
        self._recipe = {
            "to": self._snapshot_step,
            "what": rewind.what,
            "optimizer": rewind.optimizer,
        }

    def make_clock(self, schedule: Schedule) -> Clock:
        """Return the engine's clock; it stands still between two starts of a batch after a step."""
        return lambda done: self._moment

    def begin(self) -> None:
        """Take over the restored state, or start a new state.

        Raises:
            ValueError: If a checkpoint with another rewind is past the snapshot, or if the first
                update of the masks comes before the snapshot.
        """
        (done,) = self.pruner.steps
        resets_optimizer = self.rewind.optimizer == "reset"
        if self._state.get("recipe") != self._recipe:
            if done > (0 if resets_optimizer else self._snapshot_step):
                raise ValueError(
                    f"need a checkpoint that was written with the same rewind, {self._recipe}, got "
                    f"a checkpoint of step {done} with {self._state.get('recipe', 'no rewind')}"
                )
            state = _find_only_optimizer(self.trainer).state_dict()["state"]
            initial = copy_to_cpu(state) if resets_optimizer else {}
            self._state = {"recipe": self._recipe, "optimizer": initial}
        if self._has_snapshot:
            return
        moment = predict_moment(
            self.trainer, self.pruner.recipe.schedule, self._snapshot_step, done
        )
        if moment is not None and self.pruner.recipe.schedule.last_due(moment) is not None:
            raise ValueError(_describe_late_snapshot(self._snapshot_step))

    def on_batch_start(self, model: LightningModule) -> None:
        """Take the snapshot at step ``to``; at each due point, update the masks and go back."""
        optimizer = _find_only_optimizer(self.trainer)
        self.pruner.follow([optimizer])
        (steps,) = self.pruner.steps
        if steps >= self._snapshot_step and not self._has_snapshot:
            self._take_snapshot(model, optimizer)
        if steps == self._steps:  # The step still accumulates gradients.
            return
        self._steps = steps
        self._moment = self._clock(steps)
        point = self.pruner.recipe.schedule.last_due(self._moment)
        if point is None or point == self._point:
            return
        if not self._has_snapshot:
            raise RuntimeError(_describe_late_snapshot(self._snapshot_step))
        self._point = point
        optimizer.zero_grad()  # The gradients belong to the weights before going back.
        before = self.pruner.sparsity
        self.pruner.update(optimizer)
        if self.pruner.sparsity != before:
            self._restore_snapshot(model, optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the snapshot: whole tensors on the CPU, numbers, strings, dicts and lists."""
        whole: dict[str, Any] = gather_copies(self._state)
        return whole

    @property
    def _has_snapshot(self) -> bool:
        return "groups" in self._state

    def _take_snapshot(self, model: LightningModule, optimizer: Optimizer) -> None:
        state = optimizer.state_dict()
        if self.rewind.optimizer == "rewind":
            self._state["optimizer"] = copy_to_cpu(state["state"])
        tensors = collect_tensors(model, "set to=1") if self.rewind.what == "weights" else {}
        self._state |= {
            "tensors": copy_to_cpu(tensors),
            "groups": copy_to_cpu(state["param_groups"]),
            "schedulers": [
                copy_to_cpu(scheduler.state_dict()) for scheduler in _list_schedulers(self.trainer)
            ],
        }

    def _restore_snapshot(self, model: LightningModule, optimizer: Optimizer) -> None:
        if self.rewind.what == "weights":
            origin = f"step {self._snapshot_step} with rewind"
            restore_tensors(self._state["tensors"], collect_tensors(model, "set to=1"), origin)
        _restore_optimizer(
            self._state["optimizer"], self._state["groups"], optimizer, self._snapshot_step
        )
        states = self._state["schedulers"]
        for scheduler, state in zip(_list_schedulers(self.trainer), states, strict=True):
            scheduler.load_state_dict(deepcopy(state))
        self.pruner.mask(optimizer)


def _restore_optimizer(
    state: dict[int, Any], groups: list[dict[str, Any]], optimizer: Optimizer, to: int
) -> None:
    """Restore the state and the hyperparameters of the optimizer.

    Raises:
        RuntimeError: If the optimizer has another number of parameters.
    """
    before = optimizer.param_groups
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in before]:
        raise RuntimeError(
            f"need the optimizer's parameters of step {to} with rewind, got another number of "
            f"parameters now; give the optimizer all parameters before step {to}"
        )
    restore_optimizer(state, groups, optimizer)


def _find_only_optimizer(trainer: Trainer) -> Optimizer:
    if len(trainer.optimizers) != 1:
        raise ValueError(
            f"need one optimizer with rewind, got {len(trainer.optimizers)}, and each counts "
            "its own steps; give a single optimizer all parameters"
        )
    return trainer.optimizers[0]


def _describe_late_snapshot(to: int) -> str:
    return (
        f"need a step before the first update of the masks with rewind, got to={to}; "
        "lower to, or let the schedule begin later"
    )


def _list_schedulers(trainer: Trainer) -> list[Any]:
    return [config.scheduler for config in trainer.lr_scheduler_configs]

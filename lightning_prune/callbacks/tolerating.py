"""Pruning on in rounds while a metric stays within a tolerance."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console

from lightning_prune.arguments.words import suggest
from lightning_prune.callbacks.clock import read_logged_step
from lightning_prune.callbacks.decisions import describe_costs, describe_end, describe_verdict
from lightning_prune.callbacks.namespace import LightningModule, Trainer, rank_zero_warn
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
from lightning_prune.engine.rounds import Rounds
from lightning_prune.models.undisturbed import keep_generators
from lightning_prune.recipe.clocks import Clock
from lightning_prune.recipe.schedules import Schedule
from lightning_prune.recipe.tolerance import Tolerance

FILE_NAME = "within_tolerance.ckpt"
"""Name of the checkpoint of the last model that was kept."""

_BEFORE_DUE_POINTS = -1.0
_REMEDY = "run the model once before the training"


class ToleranceKeeper(Steering):
    """Keeps the last model within the tolerance, and goes back to it after a round that fails.

    A validation judges the model. Weights and masks change only after the next batch starts. So the
    checkpoints that are written at a validation hold the validated model.

    Args:
        tolerance: The answers of the user.
        pruner: The engine, not yet attached.
        trainer: The Trainer, at ``on_train_start``.
        state: A restored `state_dict`; empty for a new training.

    Raises:
        ValueError: If the training has no validation or averages weights.
    """

    key: ClassVar[str] = "tolerance"

    def __init__(
        self, tolerance: Tolerance, pruner: Pruner, trainer: Trainer, *, state: dict[str, Any]
    ) -> None:
        self.tolerance, self.pruner, self.trainer = tolerance, pruner, trainer
        if not trainer.enable_validation:
            raise ValueError(
                "need a validation with tolerance, got a training without validation; give the "
                "model validation_step and val_dataloader, and the Trainer limit_val_batches > 0"
            )
        refuse_averages(trainer, "tolerance")
        self._state: dict[str, Any] = dict(state)
        self._rounds = Rounds(tolerance=tolerance, final=1.0)
        self._is_first_validation = not state

    def make_clock(self, schedule: Schedule) -> Clock:
        """Return the engine's clock: the moment is the share that is due."""
        return lambda done: self._rounds.share or _BEFORE_DUE_POINTS

    def begin(self) -> None:
        """Take over the restored state, or start a new state.

        Raises:
            ValueError: If a checkpoint was written with another tolerance or sparsity.
        """
        recipe = {**asdict(self.tolerance), "sparsity": self.pruner.recipe.targets}
        if self._state.get("recipe", recipe) != recipe:
            raise ValueError(
                f"need a checkpoint that was written with the same tolerance, {recipe}, got a "
                f"checkpoint with {self._state['recipe']}"
            )
        fresh: dict[str, Any] = {
            "recipe": recipe,
            "final": self.pruner.final_sparsity,
            "rounds": {},
            "sparsity": 0.0,
            "steps": [],
            "goes_back": False,
        }
        self._state = state = fresh | self._state
        self._rounds = Rounds.restore(self.tolerance, state["final"], state["rounds"])
        self._path = self._find_path()
        if self._is_first_validation:
            self._say(describe_costs(self._rounds, self.trainer.max_epochs))

    def on_epoch_start(self, model: LightningModule) -> None:
        """Validate the model before the first step of a new training."""
        if not self._is_first_validation:
            return
        loop = self.trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        with keep_generators():
            self.trainer.validating = True
            loop.run()
            self.trainer.training = True
        if self._is_first_validation:
            raise ValueError("need a validation with tolerance, got a validation without batches")

    def on_batch_start(self, model: LightningModule) -> None:
        """Go back to the last model that was kept, if the last validation says so."""
        if self._state["goes_back"]:
            self.pruner.follow(self.trainer.optimizers)
            self._go_back(model)

    def on_validation_end(self, model: LightningModule) -> None:
        """Judge the validated model.

        Raises:
            ValueError: If validation does not log the metric.
        """
        metric = self._read_metric()
        is_first, self._is_first_validation = self._is_first_validation, False
        if is_first and self.tolerance.begin:  # the model is not trained yet
            return
        if not self._has_updated():
            return
        before = self._rounds.copy()
        verdict = self._rounds.judge(metric)
        if verdict != "train on":
            self._state |= {"steps": self.pruner.steps, "goes_back": verdict == "go back"}
        if verdict == "keep":
            self._keep(model)
        sparsities = self.pruner.sparsity, self._state["sparsity"]
        self._say(describe_verdict(before, self._rounds, verdict, metric, sparsities))
        self._log()

    def end(self, model: LightningModule) -> None:
        """Go back to the last model that was kept, and leave it as the result."""
        if "snapshot" not in self._state:
            rank_zero_warn(
                "training stopped before the first round of pruning, so nothing is pruned; train "
                f"longer, or lower begin={self.tolerance.begin}"
            )
            return
        if self._rounds.phase == "trial" and not self.trainer.fast_dev_run:  # type: ignore[union-attr]
            rank_zero_warn(
                f"training stopped in round {self._rounds.number}, at sparsity "
                f"{self._rounds.sparsity:.4f}, before it was known which sparsity the tolerance "
                "allows; train longer to try further"
            )
        self._go_back(model)
        if self._rounds.phase == "trial":
            self._rounds.begin_again()
            self._state["steps"] = self.pruner.steps
        self._say(describe_end(self._rounds, self.pruner.sparsity))
        if self._writes_file:
            self._say(f"written: {self._path}")

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of the rounds, and the last model that was kept."""
        whole: dict[str, Any] = gather_copies(self._state)
        return whole | {"rounds": self._rounds.state_dict()}

    @property
    def _writes_file(self) -> bool:
        return not self.trainer.fast_dev_run  # type: ignore[union-attr]

    def _has_updated(self) -> bool:
        """Whether the optimizers have stepped since the last decision, so that masks are new."""
        steps = zip(self._state["steps"], self.pruner.steps, strict=False)
        return all(now > before for before, now in steps)

    def _read_metric(self) -> float:
        """Return the metric of the last validation, which is the same on all processes."""
        logged = self.trainer.callback_metrics
        if self.tolerance.monitor not in logged:
            names = ", ".join(f"'{name}'" for name in logged) or "nothing"
            raise ValueError(
                "need a metric that validation logs, got tolerance with monitor="
                f"'{self.tolerance.monitor}'; the logged metrics are {names}"
                f"{suggest(self.tolerance.monitor, logged)}"
            )
        metric = logged[self.tolerance.monitor].to(self.trainer.strategy.root_device)
        return float(self.trainer.strategy.reduce(metric.float(), reduce_op="mean"))

    @torch.inference_mode(False)
    def _keep(self, model: LightningModule) -> None:
        """Take a snapshot, and write the checkpoint; validation runs in inference mode."""
        self._state["sparsity"] = self.pruner.sparsity
        self._state["snapshot"] = {
            "tensors": copy_to_cpu(collect_tensors(model, _REMEDY)),
            "optimizers": [copy_to_cpu(o.state_dict()["state"]) for o in self.trainer.optimizers],
            "engine": copy_to_cpu(self.pruner.state_dict()),
        }
        if self._writes_file:
            self.trainer.save_checkpoint(self._path, weights_only=False)

    def _go_back(self, model: LightningModule) -> None:
        snapshot = self._state["snapshot"]
        self.pruner.go_back(snapshot["engine"])
        tensors = collect_tensors(model, _REMEDY)
        restore_tensors(snapshot["tensors"], tensors, "the last model within the tolerance")
        for state, optimizer in zip(snapshot["optimizers"], self.trainer.optimizers, strict=False):
            optimizer.zero_grad()  # The gradients belong to the weights before going back.
            # Learning rates follow the plan of the training, which does not go back.
            restore_optimizer(state, optimizer.state_dict()["param_groups"], optimizer)
            self.pruner.mask(optimizer)
        self._state["goes_back"] = False

    def _find_path(self) -> Path:
        folder = self.trainer.log_dir or self.trainer.default_root_dir
        return Path(folder) / "checkpoints" / FILE_NAME

    def _log(self) -> None:
        values = {
            "tolerance/sparsity_held": self._state["sparsity"],
            "tolerance/worst_allowed": self.tolerance.find_worst(self._rounds.dense),
            "tolerance/round": self._rounds.number,
        }
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=read_logged_step(self.trainer))

    def _say(self, message: str) -> None:
        if message and self.trainer.is_global_zero:
            Console().print(f"tolerance: {message}", soft_wrap=True, highlight=False)

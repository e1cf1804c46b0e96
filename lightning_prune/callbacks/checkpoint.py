"""A checkpoint callback that keeps the best models that are sparse enough."""

import warnings
from typing import Any

from torch import Tensor

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.callbacks.beside import find_pruner
from lightning_prune.callbacks.namespace import LightningCheckpoint, LightningModule, Trainer
from lightning_prune.engine.pruner import Pruner
from lightning_prune.tables.table import Column, Table

_ROUNDING = 1e-9  # a mean of targets is a sum of floats


class SparsityCheckpoint(LightningCheckpoint):
    r"""Keeps the best models among those that are sparse enough.

    The best model of a pruned run is often the dense model of an early epoch, which a plain
    `ModelCheckpoint` keeps. This callback considers a model for the best ``save_top_k`` only if

    .. math:: \max(s, s_{due}) \ge s_{min}

    where :math:`s` is the sparsity counted from the masks, and :math:`s_{due}` is the present
    target; rounding can leave :math:`s` slightly below the target. Under a budget it considers a
    model whose costs are all within the budgets. Checkpoints for resuming are not
    restricted: ``save_on_exception`` saves any model, and ``save_last`` writes ``last.ckpt`` each
    time a save is due.

    Args:
        sparsity: Least sparsity :math:`s_{min}` of a considered model, in [0, 1]; by default the
            final target of the `PruningCallback`. Under a budget there is no least sparsity by
            default.
        budget_met: Whether a considered model must meet the budgets; by default if there is one.
        **kwargs: The arguments of `ModelCheckpoint`: ``monitor``, ``mode``, ``save_top_k``,
            ``save_last``, ``dirpath``, ``filename``, ``every_n_train_steps`` and so on.

    Raises:
        ValueError: If ``sparsity`` is out of range. Also when training starts, if the Trainer has
            no `PruningCallback`, or a `PruningCallback` with a lower final target.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_prune import PruningCallback
        >>> best = SparsityCheckpoint(monitor="val_acc", mode="max", save_last=True)
        >>> trainer = Trainer(
        ...     callbacks=[PruningCallback(sparsity=0.9), best], logger=False, accelerator="cpu",
        ... )
        >>> SparsityCheckpoint(sparsity=1.5)
        Traceback (most recent call last):
        ValueError: need 0 <= sparsity <= 1, got sparsity=1.5
    """

    @check_arguments
    def __init__(
        self, sparsity: float | None = None, budget_met: bool | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if sparsity is not None and not 0 <= sparsity <= 1:
            raise ValueError(f"need 0 <= sparsity <= 1, got sparsity={sparsity!r}")
        self.sparsity, self.budget_met = sparsity, budget_met
        self._has_considered = False
        # The score of the last validation, and whether the validated model was sparse enough.
        self._validation: tuple[Tensor | None, bool] = (None, False)

    @property
    def state_key(self) -> str:
        """The key of the state in a checkpoint; each demand on the models has a different key."""
        budget_met = "" if self.budget_met is None else f", 'budget_met': {self.budget_met}"
        return f"{super().state_key}{{'sparsity': {self.sparsity}{budget_met}}}"

    def _repr_html_(self) -> str:
        scores = sorted(self.best_k_models.items(), key=lambda each: float(each[1]))
        score = Column(heading=self.monitor or "score")
        return Table(
            title="The best models that are sparse enough",
            columns=[Column(heading="file", align="left"), score],
            rows=[
                [path, f"{float(value):.4f}"]
                for path, value in (reversed(scores) if self.mode == "max" else scores)
            ],
            notes=[f"to resume: {self.last_model_path}"] if self.last_model_path else [],
        ).to_html()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a Trainer without pruning."""
        if stage == "fit":
            find_pruner(self, trainer)
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a sparsity above the final target."""
        self._has_considered = False
        pruner = find_pruner(self, trainer)
        if self.budget_met and not pruner.recipe.budgets:
            raise ValueError(
                "need a budget to meet, got budget_met=True beside a PruningCallback without a "
                "budget; write PruningCallback(budget=...)"
            )
        highest = _find_highest_target(pruner)
        if self._find_least_sparsity(pruner) > highest + _ROUNDING:
            raise ValueError(
                f"need sparsity <= {highest:.4f}, the final target of the PruningCallback, got "
                f"sparsity={self.sparsity} of {type(self).__name__}; leave sparsity out to take "
                "the final target"
            )
        super().on_train_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the validated score, and whether the model was sparse enough."""
        if trainer.state.fn == "fit":
            self._validation = self._read_score(trainer), self._is_sparse_enough(trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if no model was considered."""
        super().on_train_end(trainer, pl_module)
        if self._has_considered or self.save_top_k == 0 or trainer.fast_dev_run:  # type: ignore[union-attr]
            return
        pruner = find_pruner(self, trainer)
        remedy = (
            "no save was due after that; save more often"
            if self._is_sparse_enough(trainer)
            else "end the schedule earlier or ask for less"
        )
        reached = [str(expense) for expense in pruner.spending]
        if self.sparsity is not None or not reached:
            least = self._find_least_sparsity(pruner)
            reached = [f"sparsity {pruner.sparsity:.4f} of {least:.4f}", *reached]
        warnings.warn(
            f"{type(self).__name__} has considered no model: reached {', '.join(reached)}; "
            f"{remedy}",
            stacklevel=2,
        )

    def _save_topk_checkpoint(
        self, trainer: Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        if self._is_sparse_enough(trainer) and not self._has_score_of_denser_model(trainer):
            self._has_considered = True
            super()._save_topk_checkpoint(trainer, monitor_candidates)
        if self.save_last and self._last_global_step_saved != trainer.global_step:
            # ModelCheckpoint writes or links last.ckpt only after another file of the same step.
            self._last_global_step_saved, self._last_checkpoint_saved = trainer.global_step, ""

    def _is_sparse_enough(self, trainer: Trainer) -> bool:
        pruner = find_pruner(self, trainer)
        if self.sparsity is None and not pruner.tensors:  # all weights may still be frozen
            return False
        if self.budget_met is not False and not pruner.spending.is_met:
            return False
        return (
            max(pruner.sparsity, pruner.sparsity_target)
            >= self._find_least_sparsity(pruner) - _ROUNDING
        )

    def _has_score_of_denser_model(self, trainer: Trainer) -> bool:
        """Whether the score comes from the validation of a model that was too dense."""
        score, was_sparse_enough = self._validation
        return (
            not was_sparse_enough and score is not None and bool(score == self._read_score(trainer))
        )

    def _read_score(self, trainer: Trainer) -> Tensor | None:
        return trainer.callback_metrics.get(self.monitor) if self.monitor else None

    def _find_least_sparsity(self, pruner: Pruner) -> float:
        if self.sparsity is not None:
            return self.sparsity
        return 0.0 if pruner.recipe.budgets else pruner.final_sparsity


def _find_highest_target(pruner: Pruner) -> float:
    """Return the final target; the highest target if dense parameters may join later.

    Under a budget the final sparsity is known when training ends. Without an example, the tensors
    are known in the first step.
    """
    if pruner.recipe.budgets:
        return 1.0
    if pruner.tensors and not pruner.may_grow:
        return pruner.final_sparsity
    return max(target for target in pruner.recipe.targets.values() if target is not None)

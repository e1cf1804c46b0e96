"""Pruning inside a Lightning Trainer."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.callbacks.attaching import attach_to_trainer
from lightning_prune.callbacks.averages import find_averages
from lightning_prune.callbacks.cost_check import CostCheck
from lightning_prune.callbacks.logged_recipe import log_recipe, write_recipe
from lightning_prune.callbacks.namespace import LightningCallback, LightningModule, Trainer
from lightning_prune.callbacks.old_statistics import OldStatistics
from lightning_prune.callbacks.printing import print_table, shows_progress
from lightning_prune.callbacks.seen_example import SeenExample, may_wait
from lightning_prune.callbacks.skipped_steps import SkippedSteps
from lightning_prune.callbacks.steering import Steering
from lightning_prune.callbacks.unsupported import refuse_unsupported
from lightning_prune.engine.digests import describe_shards, refuse_other_weights
from lightning_prune.engine.host import Host
from lightning_prune.engine.overview import describe
from lightning_prune.engine.pruner import Pruner
from lightning_prune.recipe.allocations import Allocation
from lightning_prune.recipe.budgets import Budget
from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.recipe.penalty import GrowingPenalty
from lightning_prune.recipe.phases import Phases
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.regrowth import Regrow
from lightning_prune.recipe.rewind import Rewind
from lightning_prune.recipe.schedules import Schedule
from lightning_prune.recipe.straight_through import StraightThrough
from lightning_prune.recipe.tolerance import Tolerance
from lightning_prune.reporting.pruning import TableSize


class PruningCallback(LightningCallback):
    """Prunes a model gradually while it trains, and lands exactly on target.

    The callback logs ``sparsity`` (counted from the masks) and ``sparsity_target`` at each step.
    Under a budget it also logs the cost and the cost that is due, as fractions of the dense cost:
    ``macs`` and ``macs_target``, and so on for ``parameters``, ``bytes`` and ``latency``.
    For channels it also logs ``parameter_sparsity``, the fraction of all parameters that removing
    the channels takes away. The callback prints a table when training starts and when training
    ends. Its checkpoints resume sparse, and also load into the plain model without this package.

    Args:
        sparsity: Final fraction of zeros of each pruned tensor, in [0, 1], 0.9 by default; or one
            for each glob of parameter or module names. null leaves a tensor dense; the last glob
            that matches decides. Beside a budget it is the most that a tensor may lose.
        budget: How much as a cost: `MacsBudget`, `ParameterBudget`, `BytesBudget`, `LatencyBudget`,
            or a list of them, which all hold; null for a sparsity.
        most: The largest sparsity that any tensor may reach; null for no limit.
        schedule: When; by default `PolynomialSchedule`, from 10 % to 50 % of the training.
        allocation: Where; by default `UniformAllocation` for N:M and channels, else
            `ERKAllocation`.
        criterion: Which; `MagnitudeCriterion` by default.
        pattern: What shape; `UnstructuredPattern` by default.
        keep_zeros: Whether weights that are zero when training starts stay zero.
        regrow: How dropped weights grow back elsewhere (RigL, SET); null for never.
        straight_through: How pruned weights go on learning behind the mask (ST-3, Feather); null if
            they stay pruned.
        phases: When training is dense and sparse in turns (AC/DC); null for always sparse.
        penalty: How the weights that go next shrink before they go; null for no penalty.
        rewind: Where each round of a `MultiStepSchedule` goes back to; null for nowhere.
        tolerance: The loss of a validation metric that pruning may cost; null for no limit. Then
            ``sparsity`` is the most that is tried, and ``schedule`` is left out.
        on_revival: Whether pruned weights that other code has changed are an ``"error"``, or
            ``"warn"`` only: then they are masked again, and training goes on. The callback looks at
            the due points, each ``log_every_n_steps`` batches and at the end.
        example: For `ChannelPattern` and most budgets, the arguments of the module's ``forward``: a
            tensor, a tuple, or a dict of names. By default the ``example_input_array``, or else the
            first sample of the sanity check, or else of the first training step. In the last case
            pruning starts within this step, before the optimizer moves weights.
        table: Whether the tables are ``"short"``, ``"full"`` or ``"off"``. A short table has at
            most 30 lines: tensors whose names differ in numbers only share a row. A Trainer with
            ``enable_model_summary=False`` prints no table.

    Raises:
        ValueError: If an argument is out of range, or two arguments clash.
        TypeError: If an argument is of another kind.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> pruning = PruningCallback(sparsity=0.9)
        >>> trainer = Trainer(callbacks=[pruning], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        sparsity: float | Mapping[str, float | None] | None = None,
        schedule: Schedule | None = None,
        allocation: Allocation | None = None,
        criterion: Criterion | None = None,
        pattern: Pattern | None = None,
        keep_zeros: bool = False,
        regrow: Regrow | None = None,
        rewind: Rewind | None = None,
        tolerance: Tolerance | None = None,
        on_revival: Literal["error", "warn"] = "error",
        example: Any = None,
        budget: Budget | list[Budget] | None = None,
        most: float | None = None,
        straight_through: StraightThrough | None = None,
        phases: Phases | None = None,
        penalty: GrowingPenalty | None = None,
        table: TableSize = "short",
    ) -> None:
        self._begin(
            Recipe.of(
                sparsity=sparsity,
                budget=budget,
                most=most,
                schedule=schedule,
                allocation=allocation,
                criterion=criterion,
                pattern=pattern,
                keep_zeros=keep_zeros,
                regrow=regrow,
                straight_through=straight_through,
                phases=phases,
                penalty=penalty,
                rewind=rewind,
                tolerance=tolerance,
                on_revival=on_revival,
            ),
            example,
            table,
        )

    @classmethod
    @check_arguments
    def from_recipe(
        cls, recipe: Recipe, *, example: Any = None, table: TableSize = "short"
    ) -> "PruningCallback":
        """Return the callback of a recipe.

        Args:
            recipe: The answers.
            example: For `ChannelPattern`, the arguments of the module's ``forward``.
            table: How much of the tables is printed.
        """
        callback = cls.__new__(cls)
        callback._begin(recipe, example, table)
        return callback

    @check_arguments
    def _begin(self, recipe: Recipe, example: Any, table: TableSize) -> None:
        self.pruner = Pruner.from_recipe(recipe)
        self.example, self.table = example, table
        self._host = Host(self.pruner)
        self._seen = SeenExample()
        self._steering: Steering | None = None
        self._costs: CostCheck | None = None
        # What the next training restores: empty for a new training, None once training has started.
        self._restored_state: dict[str, Any] | None = None
        self._is_training = False
        self._statistics, self._skipped = OldStatistics(self.pruner), SkippedSteps(self.pruner)

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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a Trainer that pruning does not support."""
        refuse_unsupported(trainer, PruningCallback)
        if stage == "fit":
            self._restored_state, self._seen = {}, SeenExample()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an empty state if training did not start."""
        self._restored_state = self._restored_state or None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's masks and counts until training starts."""
        if not self._is_training:
            self._restored_state = state_dict
        elif state_dict["steps"] != self.pruner.steps:
            raise RuntimeError(
                "need a checkpoint of the present step to restore in the middle of training, got "
                f"a checkpoint of steps {state_dict['steps']} at {self.pruner.steps}; "
                "start another fit with ckpt_path"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return masks (one bit a weight), counts, statistics, snapshot and digests of shards."""
        if self._restored_state is not None:
            return self._restored_state
        if not self.pruner.tensors:
            return {}
        steering = self._steering
        snapshot = {steering.key: steering.state_dict()} if steering else {}
        shards = describe_shards(self.pruner.tensors)
        return self.pruner.state_dict() | snapshot | shards | self._seen.state_dict()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the first call of the model if an example is needed, and none is given."""
        if self.recipe.needs_example and self.example is None:
            self._seen.watch(pl_module)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look no longer."""
        self._seen.stop()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the recipe into the hyperparameters of all loggers."""
        log_recipe(trainer, pl_module, self.recipe)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin; under every strategy, weights, optimizers and restored states exist only now.

        Without an example, the first step of the training shows one, and pruning begins there.
        """
        if self._restored_state:
            if trainer.ckpt_path:  # Lightning has restored the weights too.
                refuse_other_weights(self._restored_state, pl_module)
            self._seen.load_state_dict(self._restored_state)
        example = self._seen.share(trainer) if self.example is None else self.example
        if example is None and may_wait(self.recipe, pl_module):
            self.pruner.forget_training()
            self._seen.watch(pl_module)
        else:
            self._attach(trainer, pl_module, example)

    def _attach(self, trainer: Trainer, pl_module: LightningModule, example: Any) -> None:
        """Begin to prune."""
        self._steering, self._costs = attach_to_trainer(
            self.pruner,
            trainer,
            pl_module,
            callback=self,
            example=example,
            state=self._restored_state,
        )
        self._restored_state, self._is_training = None, True
        self._statistics, self._skipped = OldStatistics(self.pruner), SkippedSteps(self.pruner)
        self._host.forget()
        self._host.mask_copies(find_averages(trainer))
        print_table(trainer, self.pruner, "To be pruned", self.table)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log again in this epoch: Lightning forgets logged values at the end of an epoch."""
        self._host.forget()
        if self._steering is not None:
            self._steering.on_epoch_start(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the validated model under a tolerance."""
        if self._is_training and self._steering is not None:
            self._steering.on_validation_end(pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go back to earlier weights if a round is complete."""
        if self._steering is not None:
            self._steering.on_batch_start(pl_module)

    # Otherwise a compiled optimizer traces this hook and compiles again at each update.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Pass the step to the engine: the gradients are complete and not yet clipped."""
        if self._seen.is_watching:
            example = self._seen.take_from_first_step(trainer, pl_module)
            self._attach(trainer, pl_module, example)
            self.pruner.begin_step(optimizer)  # `step` calls the closure that we are in
        self.pruner.follow(trainer.optimizers)
        if self._skipped.will_be_skipped(trainer, optimizer):
            self.pruner.skip_step(optimizer)
        else:
            self.pruner.before_step(optimizer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log sparsity and target after each update; Lightning repeats them between updates."""
        if self._seen.is_watching:  # the first step is still to come
            return
        self._skipped.end_steps()
        self._host.mask_copies(find_averages(trainer))
        self._statistics.note_batch()
        batches = trainer.fit_loop.total_batch_idx + 1
        if trainer.log_every_n_steps and batches % trainer.log_every_n_steps == 0:  # type: ignore[union-attr]
            self.pruner.check_zeros()
        if not self._host.take_news():
            return
        if self._costs is not None:
            self._costs.check()
        for name, value in self._host.read_values().items():
            is_shown = shows_progress(trainer) and name == "sparsity"
            pl_module.log(name, value, prog_bar=is_shown, on_step=True, on_epoch=False)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Mask averaged copies, so that other callbacks save them with the present masks.

        Write the recipe beside the checkpoints.
        """
        self._host.mask_copies(find_averages(trainer))
        write_recipe(trainer, self.recipe)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the hooks; the pruned weights stay zero."""
        if self._seen.is_watching:  # no step was made
            self._seen.stop()
            return
        self._is_training = False
        if self._steering is not None:
            self._steering.end(pl_module)
        self.pruner.detach()
        print_table(trainer, self.pruner, "Pruned", self.table)
        self._statistics.warn(pl_module)
        if self._costs is not None:
            self._costs.print_measured()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove the hooks; the pruned weights stay zero."""
        self._is_training, self._restored_state = False, self._restored_state or None
        self._seen.stop()
        self.pruner.forget_state()
        self.pruner.detach(completed=False)

"""Pruning inside a Lightning Trainer."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from rich.console import Console
from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer

from lightning_prune.callbacks.clock import make_trainer_clock
from lightning_prune.callbacks.rewinding import Rewinder
from lightning_prune.engine.groups import Group
from lightning_prune.engine.pruner import Pruner
from lightning_prune.recipe.allocations import Allocation
from lightning_prune.recipe.clocks import Clock
from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.regrowth import Regrow
from lightning_prune.recipe.rewind import Rewind
from lightning_prune.recipe.schedules import Schedule
from lightning_prune.reporting.pruning import pruning_table


class PruningCallback(Callback):
    """Prunes the model gradually while it trains, and lands exactly on target.

    Logs ``sparsity`` (counted from the masks) and ``sparsity_target`` at each step, of channels
    also ``parameter_sparsity``, the share of all parameters that removing them takes away; prints
    what will be pruned when training starts and what was when it ends. Its checkpoints resume
    sparse; they also load into the plain model, without this package.

    Args:
        sparsity: Final fraction of zeros of each pruned tensor, in [0, 1]; or one for each glob of
            parameter or module names, null leaving it dense, where the last that matches decides.
        schedule: When; by default `PolynomialSchedule`, from 10 % to 50 % of the training.
        allocation: Where; by default `UniformAllocation` for N:M and channels, else
            `ERKAllocation`.
        criterion: Which; `MagnitudeCriterion` by default.
        pattern: What shape; `UnstructuredPattern` by default.
        keep_zeros: Whether weights that are zero when training starts stay so.
        regrow: Whether and how what is dropped grows back elsewhere (RigL, SET); null for never.
        rewind: Where each round of a `MultiStepSchedule` goes back to; nowhere by default.
        example: For `ChannelPattern`, what the module's ``forward`` takes: a tensor, a tuple of
            arguments, or a dict of named ones; by default its ``example_input_array``, which is
            the way to say it in YAML.

    Raises:
        ValueError: If an argument is out of range, or two of them clash.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[PruningCallback(sparsity=0.9)], logger=False, accelerator="cpu",
        ... )
    """

    def __init__(
        self,
        sparsity: float | dict[str, float | None] = 0.9,
        schedule: Schedule | None = None,
        allocation: Allocation | None = None,
        criterion: Criterion | None = None,
        pattern: Pattern | None = None,
        keep_zeros: bool = False,
        regrow: Regrow | None = None,
        rewind: Rewind | None = None,
        example: Any = None,
    ) -> None:
        self._begin(
            Recipe.of(
                sparsity=sparsity,
                schedule=schedule,
                allocation=allocation,
                criterion=criterion,
                pattern=pattern,
                keep_zeros=keep_zeros,
                regrow=regrow,
                rewind=rewind,
            ),
            example,
        )

    @classmethod
    def from_recipe(cls, recipe: Recipe, *, example: Any = None) -> "PruningCallback":
        """Return the callback of a recipe.

        Args:
            recipe: The answers.
            example: For `ChannelPattern`, what the module's ``forward`` takes.
        """
        callback = cls.__new__(cls)
        callback._begin(recipe, example)
        return callback

    def _begin(self, recipe: Recipe, example: Any) -> None:
        self.pruner = Pruner.from_recipe(recipe)
        self.example = example
        self._rewinder: Rewinder | None = None
        # What the next training starts from; empty if afresh, None once it has begun.
        self._restored: dict[str, Any] | None = None
        self._training = False
        self._averaged_updates: int | None = None
        self._logged: tuple[int, Sequence[Group]] | None = None  # as of which update, this epoch

    @property
    def recipe(self) -> Recipe:
        """All answers."""
        return self.pruner.recipe

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks by qualified parameter name; True keeps."""
        return self.pruner.masks

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in the pruned tensors together, counted from the masks."""
        return self.pruner.sparsity

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, before anything has happened."""
        others = [c for c in trainer.callbacks if isinstance(c, PruningCallback)]  # type: ignore[attr-defined]
        if len(others) > 1:
            raise ValueError(
                f"need one PruningCallback in a Trainer, got {len(others)}; give several targets "
                "to one by sparsity={'encoder': 0.9, 'decoder': 0.5}"
            )
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
            raise ValueError(
                "need a strategy that leaves parameters in their shape, got "
                f"{type(trainer.strategy).__name__}; use ModelParallelStrategy (FSDP2) or DDP"
            )
        if stage == "fit":
            self._restored = {}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Go back to what was there before a fit that had nothing left to train."""
        self._restored = self._restored or None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's masks and counts until training starts."""
        if not self._training:
            self._restored = state_dict
        elif state_dict["steps"] != self.pruner.steps:
            raise RuntimeError(
                "need a checkpoint of the present step to restore in the middle of training, got "
                f"one of steps {state_dict['steps']} at {self.pruner.steps}; "
                "start another fit with ckpt_path"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return masks (one bit an entry), step counts and what criterion and rewind have kept."""
        if self._restored is not None:
            return self._restored
        if not self.pruner.tensors:
            return {}
        kept = {"rewind": self._rewinder.state_dict()} if self._rewinder else {}
        return self.pruner.state_dict() | kept

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, where weights, optimizers and restored states are there under every strategy."""
        resumed = bool(self._restored)
        clocks: Callable[[Schedule], Clock] = partial(
            make_trainer_clock, trainer, is_resumed=resumed
        )
        rewinder = None
        if self.recipe.rewind is not None:
            state = (self._restored or {}).get("rewind", {})
            rewinder = Rewinder(
                self.recipe.rewind, self.pruner, trainer, state=state, resumed=resumed
            )
            clocks = rewinder.clock
        if self._restored:
            self.pruner.load_state_dict(self._restored)

        def is_trial_step(optimizer: Optimizer) -> bool:
            is_finder = self not in trainer.callbacks  # type: ignore[attr-defined]
            return is_finder or _will_be_skipped(trainer, optimizer)

        with self._status(trainer):
            self.pruner.attach(
                pl_module,
                trainer.optimizers,
                clocks=clocks,
                is_trial_step=is_trial_step,
                example=self.example,
            )
        if rewinder is not None:
            rewinder.begin()
        self._rewinder = rewinder
        self._restored, self._training = None, True
        self._averaged_updates, self._logged = None, None
        self._mask_averages(trainer)
        self._say(trainer, "To be pruned")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log again: Lightning forgets at the end of an epoch."""
        self._logged = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go back, if a round is complete."""
        if self._rewinder is not None:
            self._rewinder.on_batch_start(pl_module)

    # A compiled optimizer would trace this and compile again at each update.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Let the engine work on gradients that are complete and not yet clipped."""
        self.pruner.follow(trainer.optimizers)
        if _will_be_skipped(trainer, optimizer):
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
        """Log what is reached and what is due, if that is new: Lightning repeats it until then."""
        self._mask_averages(trainer)
        key = self.pruner.updates, self.pruner.groups
        if self._logged == key:
            return
        self._logged = key
        reached = {
            "sparsity": self.pruner.sparsity,
            "sparsity_target": self.pruner.sparsity_target,
        }
        if self.recipe.pattern.couples_tensors:
            reached["parameter_sparsity"] = self.pruner.parameter_sparsity
        has_bar = trainer.progress_bar_callback is not None
        for name, value in reached.items():
            is_shown = has_bar and name == "sparsity"
            pl_module.log(name, value, prog_bar=is_shown, on_step=True, on_epoch=False)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let averaged copies be saved with the present masks, also ahead of our turn."""
        self._mask_averages(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the zeros in the weights for good."""
        self._training = False
        self.pruner.detach()
        self._say(trainer, "Pruned")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the zeros that were reached, and no hook."""
        self._training, self._restored = False, self._restored or None
        self.pruner.detach(completed=False)

    def _mask_averages(self, trainer: Trainer) -> None:
        """Prune the averaged copies that other callbacks keep, as often as the masks change.

        Between changes an average of zeros stays zero, whichever callback comes first.
        """
        if self.pruner.updates == self._averaged_updates:
            return
        self._averaged_updates = self.pruner.updates
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            average = getattr(callback, "_average_model", None)
            if average is not None:
                self.pruner.mask_copy(getattr(average, "module", average))

    def _status(self, trainer: Trainer) -> AbstractContextManager[Any]:
        """Say in a terminal what takes long."""
        if not (self.recipe.pattern.couples_tensors and trainer.is_global_zero):
            return nullcontext()
        return Console().status("finding which channels go together")

    def _say(self, trainer: Trainer, title: str) -> None:
        if trainer.is_global_zero:
            Console().print(pruning_table(self.pruner, title))


def _will_be_skipped(trainer: Trainer, optimizer: Optimizer) -> bool:
    """Whether the gradient scaler has found infinite gradients and will leave the step out."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return False
    state = scaler._per_optimizer_states[id(optimizer)]
    if state["stage"] is OptState.READY:
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            return True  # Lightning unscales unless there was no loss, and then does not step
        scaler.unscale_(optimizer)  # a fused optimizer would do so itself, after we have looked
    return any(bool(value.item()) for value in state["found_inf_per_device"].values())

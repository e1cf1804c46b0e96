"""The repair of a pruned model: the layers in turn, on the inputs of training batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_prune.callbacks.namespace import (
    LightningCallback,
    LightningDataModule,
    LightningModule,
    Trainer,
)
from lightning_prune.callbacks.printing import shows_progress
from lightning_prune.engine.pruner import Pruner
from lightning_prune.engine.repairing import (
    DenseTwin,
    LayerRepair,
    RepairedLayer,
    plan_repairs,
)
from lightning_prune.models.progress import show_progress, track_progress
from lightning_prune.models.undisturbed import keep_generators, keep_modes, keep_tensors
from lightning_prune.post_training.calibration import describe_shortage
from lightning_prune.post_training.held_fits import hold_weights, quiet, similar_trainer
from lightning_prune.post_training.layer_turns import (
    Calls,
    Gathering,
    find_turns,
    run_batch,
    watch,
)
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.repair import Repair
from lightning_prune.tables.table import Column, Table


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """The layers that were repaired, and those that were not.

    Args:
        layers: The repaired layers, in the order of their turns.
        skipped: The reason why another pruned layer is only masked, by the name of the weight.
    """

    layers: Sequence[RepairedLayer] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

    def table(self) -> Table:
        """Return the errors of all layers, for a terminal."""
        return Table(
            title="Repaired",
            columns=[
                Column(heading="weight", align="left"),
                Column(heading="error of zeros alone"),
                Column(heading="repaired"),
            ],
            rows=[
                [each.name, f"{each.masked:.4f}", f"{each.repaired:.4f}"] for each in self.layers
            ],
            notes=[f"not repaired: '{name}' ({why})" for name, why in self.skipped.items()],
        )


def check_repair(recipe: Recipe) -> None:
    """Raise ValueError if a repair cannot repair, or cannot choose the masks.

    Raises:
        ValueError: If the pattern takes whole branches, or a repair would have to choose masks and
            the allocation needs scores.
    """
    allocation = recipe.chosen_allocation
    if recipe.pattern.spans_branches:
        raise ValueError(
            "need a pattern that leaves weights in each layer for a Repair, got pattern="
            f"{type(recipe.pattern).__name__}; prune without repair, and train on"
        )
    if recipe.criterion is None and allocation.needs_scores and not recipe.pattern.couples_tensors:
        raise ValueError(
            "need an allocation without scores for a Repair that chooses the masks, got allocation="
            f"{type(allocation).__name__}; use UniformAllocation or ERKAllocation, or name a "
            "criterion, whose masks the repair keeps"
        )


def repair_layers(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    pruner: Pruner,
    twin: DenseTwin,
    repair: Repair,
    batches: int,
    train_mode: bool,
) -> RepairReport:
    """Repair the layers of a pruned model, each on the inputs that its pruned predecessors make.

    Layers that read the same tensor take a turn together. In each turn all batches run through the
    model up to these layers, twice: with dense and with repaired predecessors. Memory holds the
    sums of one turn at a time.

    Args:
        trainer: Gives device and precision; one process.
        model: The pruned model; weights and biases of pruned layers change.
        datamodule: The source of training batches; by default the model.
        pruner: The detached engine with the masks.
        twin: The values before pruning.
        repair: The options.
        batches: Number of training batches, at most one epoch; they stay in memory.
        train_mode: Whether the modules are in train mode during these batches.

    Raises:
        ValueError: If an epoch has fewer batches. Then the model is dense, as before pruning.
    """
    chooses = pruner.recipe.criterion is None and not pruner.recipe.pattern.couples_tensors
    groups = {group.name: group for group in pruner.groups} if chooses else {}
    repairs, skipped = plan_repairs(model, pruner.tensors, twin, groups)
    operation = _Operation(repairs, repair, batches, twin)
    keep_buffers = keep_tensors(model, parameters=False)
    bar = show_progress(shows_progress(trainer))
    try:
        with keep_generators(), keep_modes(model), keep_buffers, quiet(".*"), bar:
            model.train(train_mode)
            if repairs:
                similar_trainer(trainer, operation).fit(model, datamodule=datamodule)
    except BaseException:
        twin.restore()
        raise
    finally:
        model.zero_grad()
        model.trainer = trainer
        if datamodule is not None:
            datamodule.trainer = trainer
    called = {layer.name for layer in operation.done}
    unseen = {
        layer.name: "no training batch calls it" for layer in repairs if layer.name not in called
    }
    return RepairReport(layers=operation.done, skipped=skipped | unseen)


class _Operation(LightningCallback):
    """Shows the first batches of a fit to the dense layers, repairs them, and ends the fit."""

    def __init__(
        self, repairs: Sequence[LayerRepair], repair: Repair, batches: int, twin: DenseTwin
    ) -> None:
        self.repairs, self.repair, self.batches, self.twin = repairs, repair, batches, twin
        self.seen: list[tuple[Any, Calls]] = []
        self.hooks: list[RemovableHandle] = []
        self.done: list[RepairedLayer] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the optimizers by those that change nothing, and watch the dense layers."""
        hold_weights(trainer, pl_module)
        for index, layer in enumerate(self.repairs):
            layer.begin()
            self.hooks.append(watch(layer.tensor.owner, partial(self._note, index)))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch."""
        self.seen.append((batch, Calls()))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Repair all layers after the last batch."""
        self.seen[-1][1].end()
        if len(self.seen) < self.batches:
            return
        self._remove_hooks()
        turns = find_turns([calls for _, calls in self.seen])
        for turn in track_progress(turns, "repairing layers"):
            self._operate(trainer, pl_module, turn)
        called = {layer.name for layer in self.done}
        for layer in self.repairs:
            if layer.name not in called:
                layer.give_up()
        trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse fewer batches than requested."""
        if len(self.seen) < self.batches:
            raise ValueError(describe_shortage(self.batches, len(self.seen)))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove the hooks."""
        self._remove_hooks()

    def _note(self, layer: int, inputs: Tensor) -> None:
        self.seen[-1][1].note(layer, inputs)

    def _remove_hooks(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def _operate(self, trainer: Trainer, model: LightningModule, turn: Sequence[int]) -> None:
        """Repair the layers of a turn."""
        layers = [self.repairs[index] for index in turn]
        gathering = Gathering(layers)
        for number, (batch, calls) in enumerate(self.seen):
            if (expected := calls.count(turn)) == 0:
                continue
            if self.done:
                with self.twin.shown(), gathering.reading_dense(expected):
                    run_batch(trainer, model, batch, number)
            with gathering.adding(expected):
                run_batch(trainer, model, batch, number)
        for layer, moments in zip(layers, gathering.moments, strict=True):
            self.done.append(layer.operate(moments, self.repair))

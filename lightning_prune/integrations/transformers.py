"""Pruning inside the Trainer of transformers, and the trainers that inherit from it, as TRL's."""

import math
import warnings
from collections.abc import Sized
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.engine.host import Host, Progress, make_host_clock, refuse_going_back
from lightning_prune.engine.overview import describe
from lightning_prune.engine.pruner import Pruner
from lightning_prune.engine.wrappers import unwrap_model
from lightning_prune.models.names import named_parameters
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.targets import SparsityTargets
from lightning_prune.reporting.pruning import TableSize, print_pruning_table
from lightning_prune.tensors.shards import local_part

_IS_INSTALLED = find_spec("transformers") is not None

if _IS_INSTALLED and not TYPE_CHECKING:
    from transformers import TrainerCallback
else:

    class TrainerCallback:
        """Stands for the class of transformers where that is not installed."""


FILE = "pruning.pt"
"""The file of a checkpoint folder that holds the masks."""


class PruningTrainerCallback(TrainerCallback):
    """Prunes a model gradually while the Trainer of transformers trains it.

    Write ``Trainer(callbacks=[PruningTrainerCallback(sparsity=0.9)])``. The weights are masked in
    place, so ``save_pretrained`` writes zeros, and ``from_pretrained`` needs no code of this
    package. The folder of each checkpoint gets a file ``pruning.pt`` with the masks, from which
    ``train(resume_from_checkpoint=...)`` resumes bit for bit.

    The Trainer has no call before it clips gradients, so it clips those of pruned weights, too.
    With ``load_best_model_at_end`` or ``metric_for_best_model``, only models of the final sparsity
    count as the best.

    The values ``sparsity`` and ``sparsity_target`` are in ``state.log_history``, beside the loss.
    TensorBoard and other loggers of ``report_to`` see them if `add_to` adds the callback.

    Args:
        sparsity: Final fraction of zeros of each pruned tensor, in [0, 1], 0.9 by default; or one
            for each glob of parameter or module names. None leaves a tensor dense.
        example: For `ChannelPattern` and most budgets, the arguments of the model's ``forward``: a
            tensor, a tuple, or a dict of names. By default the ``dummy_inputs`` of the model.
        resume_folder: The folder of the checkpoint that training resumes from. By default
            ``checkpoint-<step>`` in the ``output_dir`` of the Trainer.
        table: Whether the tables are ``"short"`` (at most 30 lines), ``"full"`` or ``"off"``.
        **answers: All other answers of `Pruner`: ``schedule``, ``criterion``, ``pattern`` and so
            on.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        ValueError: If an argument is out of range, or two of them clash.
        TypeError: If an argument is of another kind, or unknown.
    """

    def __init__(
        self,
        sparsity: SparsityTargets | None = None,
        *,
        example: Any = None,
        resume_folder: str | Path | None = None,
        table: TableSize = "short",
        **answers: Any,
    ) -> None:
        self._begin(Pruner(sparsity=sparsity, **answers), example, resume_folder, table)

    @classmethod
    @check_arguments
    def from_recipe(
        cls,
        recipe: Recipe,
        *,
        example: Any = None,
        resume_folder: str | Path | None = None,
        table: TableSize = "short",
    ) -> "PruningTrainerCallback":
        """Return the callback of a recipe.

        Args:
            recipe: The answers.
            example: For `ChannelPattern`, the arguments of the model's ``forward``.
            resume_folder: The folder of the checkpoint that training resumes from.
            table: How much of the tables is printed.

        Raises:
            ValueError: If the recipe goes back to earlier weights, which needs Lightning.
        """
        refuse_going_back(recipe)
        callback = cls.__new__(cls)
        callback._begin(Pruner.from_recipe(recipe), example, resume_folder, table)
        return callback

    @check_arguments
    def _begin(
        self, pruner: Pruner, example: Any, resume_folder: str | Path | None, table: TableSize
    ) -> None:
        if not _IS_INSTALLED:
            raise ModuleNotFoundError(
                "need transformers for PruningTrainerCallback, got an environment without it; run "
                "pip install 'lightning-prune[transformers]'",
                name="transformers",
            )
        self.pruner, self.example, self.resume_folder = pruner, example, resume_folder
        self.table = table
        self._host = Host(pruner)
        self._is_first = self._is_training = False
        self._has_landed = False  # at the last step
        self._steps: list[int] = []  # completed steps of the optimizer, at the last step

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

    def add_to(self, trainer: Any) -> None:
        """Add the callback to a Trainer, before the loggers of ``report_to``.

        The Trainer appends the callbacks that it is given. Loggers that come before them do not
        see the values that they add.

        Args:
            trainer: A Trainer that does not have this callback yet.
        """
        trainer.add_callback(self)
        callbacks = trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop(callbacks.index(self)))
        self._is_first = True

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        train_dataloader: Any = None,
        **others: Any,
    ) -> None:
        """Begin, or continue from a checkpoint; weights and optimizer are restored by now."""
        if getattr(args, "deepspeed", None):
            raise ValueError(
                "need parameters that an optimizer of torch trains, got deepspeed, which trains "
                "copies; use DDP or FSDP2"
            )
        self._warn_of_loggers(args)
        self.pruner.detach(completed=False)  # no callback is told of an exception
        self.pruner.forget_state()
        steps, file = 0, self._find_folder(args, state) / FILE
        if state.global_step:
            steps = self._host.load(file, model)[0]
        nonzeros = _count_nonzeros(model)
        progress = _TrainerProgress(args, state, train_dataloader, steps)
        is_example_known = self.example is not None or not self.recipe.needs_example
        self.pruner.attach(
            model,
            optimizer,
            clocks=lambda schedule: make_host_clock(progress, schedule),
            hook=True,
            example=self.example if is_example_known else getattr(model, "dummy_inputs", None),
            progress=not args.disable_tqdm,
        )
        if state.global_step:
            self._refuse_other_weights(nonzeros, file)
        self._host.forget()
        self._is_training, self._steps = True, self.pruner.steps
        self._has_landed = self._host.has_landed
        self._keep_dense_from_best(state)
        self._print_table(state, "To be pruned")

    def on_step_end(
        self, args: Any, state: Any, control: Any, *, optimizer: Optimizer, **others: Any
    ) -> None:
        """Look whether the step was made, and whether the model may be the best from now on."""
        if self.recipe.chosen_criterion.gathers:  # else there is nothing to forget
            if self.pruner.steps == self._steps:
                self.pruner.skip_step(optimizer)
            self._steps = self.pruner.steps
        if state.logging_steps and state.global_step % state.logging_steps == 0:
            self.pruner.check_zeros()
        self._keep_dense_from_best(state)
        self._has_landed = self._host.has_landed

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **others: Any,
    ) -> None:
        """Add sparsity and target to the values that the Trainer logs beside the loss."""
        if self._is_training and logs is not None and "loss" in logs:
            values = self._host.read_values()
            logs |= values
            state.log_history[-1] |= values

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Save masks, counts and statistics into the folder of the checkpoint."""
        self._keep_dense_from_best(state)
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._host.save(folder / FILE, writes=args.should_save and folder.is_dir())

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Remove the hooks; the pruned weights stay zero, also in the best model."""
        self._is_training = False
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            file = Path(state.best_model_checkpoint) / FILE
            if file.exists():  # with regrowth, the masks have changed since
                self._host.go_back(file)
        self.pruner.detach()
        self._print_table(state, "Pruned")

    def _find_folder(self, args: Any, state: Any) -> Path:
        """Return the folder that the Trainer resumes from, which no callback is told of."""
        if self.resume_folder is not None:
            return Path(self.resume_folder)
        return Path(args.output_dir) / f"checkpoint-{state.global_step}"

    def _refuse_other_weights(self, before: dict[str, int], file: Path) -> None:
        """Raise ValueError if the masks of a file have pruned weights of the checkpoint."""
        after = {tensor.name: int(tensor.weights.count_nonzero()) for tensor in self.pruner.tensors}
        others = [f"'{name}'" for name, count in after.items() if count != before[name]]
        if others:
            self.pruner.detach(completed=False)
            raise ValueError(
                "need the masks of the checkpoint that training resumes from, got those of "
                f"{file}, which prune weights that are not 0 in {', '.join(others)}; write "
                "PruningTrainerCallback(resume_folder=...)"
            )

    def _keep_dense_from_best(self, state: Any) -> None:
        """Let the Trainer forget the best model, if that is not as sparse as the last one."""
        if not self._has_landed:
            state.best_metric = state.best_model_checkpoint = None
            if hasattr(state, "best_global_step"):  # not in 4.48
                state.best_global_step = None

    def _warn_of_loggers(self, args: Any) -> None:
        loggers = [name for name in args.report_to if name != "none"]
        if loggers and not self._is_first:
            warnings.warn(
                f"{', '.join(loggers)} will not show the sparsity, since loggers come before the "
                "callbacks of Trainer(callbacks=...); call pruning.add_to(trainer) instead",
                stacklevel=2,
            )

    def _print_table(self, state: Any, title: str) -> None:
        is_first = state.is_world_process_zero
        print_pruning_table(self.pruner, title, self.table, is_first=is_first)


class _TrainerProgress(Progress):
    """The progress of a Trainer of transformers.

    Args:
        args: The arguments of the training.
        state: The state of the Trainer.
        loader: The loader of training batches.
        steps: The steps that the optimizer had completed in the checkpoint.
    """

    def __init__(self, args: Any, state: Any, loader: Any, steps: int) -> None:
        self._args, self._state, self._loader = args, state, loader
        self._planned_steps = steps + state.max_steps - state.global_step

    @property
    def is_last(self) -> bool:
        """Whether the Trainer makes no step after the present step."""
        return bool(self._state.global_step + 1 >= self._state.max_steps)

    @property
    def fraction(self) -> float:
        """Completed steps over planned steps; skipped steps count."""
        return float(self._state.global_step / self._state.max_steps)

    @property
    def epochs(self) -> float:
        """The epochs that are done."""
        return float(self._state.epoch or 0.0)

    @property
    def planned_epochs(self) -> float:
        """The epochs that are asked for, or those of ``max_steps``."""
        if self._args.max_steps <= 0:
            return float(self._args.num_train_epochs)
        if not isinstance(self._loader, Sized):
            return math.inf
        batches = len(self._loader)
        return float(
            self._args.max_steps / math.ceil(batches / self._args.gradient_accumulation_steps)
        )

    @property
    def planned_steps(self) -> int:
        """The final step count of the optimizer."""
        return int(self._planned_steps)

    @property
    def unknown_end(self) -> str:
        """Empty: a Trainer of transformers refuses a training without an end."""
        return ""


@torch.no_grad()
def _count_nonzeros(model: nn.Module) -> dict[str, int]:
    """Return the number of local weights of each parameter that are not 0."""
    parameters = named_parameters(unwrap_model(model)).items()
    return {name: int(local_part(weights).count_nonzero()) for name, weights in parameters}

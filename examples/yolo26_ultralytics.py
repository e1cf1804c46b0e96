"""Pruning YOLO26 inside the trainer of Ultralytics: `python -m examples.yolo26_ultralytics`."""

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from ultralytics import YOLO
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils.torch_utils import unwrap_model

from examples.shapes_data import ShapesDataModule, write_shapes
from lightning_prune import Pruner, Schedule, Sparsity


class UltralyticsPruning:
    """Prunes the model of an Ultralytics trainer by callbacks only.

    The trainer has no callback between ``backward()`` and ``step()``. A hook of the optimizer
    replaces it. The hook runs after unscaling and clipping, and only for steps that are made.

    Args:
        pruner: The recipe.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner
        self._batch = 0  # in this epoch, 0-based
        self._hooks: list[RemovableHandle] = []

    def add_to(self, model: YOLO) -> None:
        """Add the callbacks to a model, before ``train()`` is called."""
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

    def on_train_start(self, trainer: BaseTrainer) -> None:
        """Begin, or continue from ``last.pt``."""
        if trainer.resume:
            self.pruner.load_state_dict(torch.load(trainer.wdir / "pruner.pt"))

        def clocks(schedule: Schedule) -> Any:
            return lambda done: done if schedule.unit == "step" else self._moment(trainer, schedule)

        self.pruner.attach(
            unwrap_model(trainer.model),
            trainer.optimizer,
            clocks=clocks,
            is_trial_step=_will_be_skipped,
        )
        self._hooks = [trainer.optimizer.register_step_pre_hook(self._before_step)]

    def on_train_epoch_start(self, trainer: BaseTrainer) -> None:
        """Count batches from 0."""
        self._batch = 0

    def on_train_batch_end(self, trainer: BaseTrainer) -> None:
        """Count the batch."""
        self._batch += 1

    def on_train_epoch_end(self, trainer: BaseTrainer) -> None:
        """Prune the average of the weights, which will be validated and saved.

        Until the final sparsity is reached, no epoch counts as the best or as without improvement.
        """
        self.pruner.mask_copy(trainer.ema.ema)
        if self.pruner.sparsity_target < self.pruner.final_sparsity:
            trainer.best_fitness = None
            trainer.stopper.best_fitness = 0.0

    def on_model_save(self, trainer: BaseTrainer) -> None:
        """Save the masks and counts beside ``last.pt``."""
        torch.save(self.pruner.state_dict(), trainer.wdir / "pruner.pt")

    def on_train_end(self, trainer: BaseTrainer) -> None:
        """Check that the zeros are there."""
        self.pruner.detach()

    def teardown(self, trainer: BaseTrainer) -> None:
        """Leave no hook behind, also after an exception."""
        for hook in self._hooks:
            hook.remove()
        self.pruner.detach(completed=False)  # does nothing after a complete training

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if _will_be_skipped(optimizer):
            self.pruner.skip_step(optimizer)
        else:
            self.pruner.before_step(optimizer)

    def _moment(self, trainer: BaseTrainer, schedule: Schedule) -> float:
        batches = len(trainer.train_loader)
        done, planned = trainer.epoch * batches + self._batch, trainer.epochs * batches
        # The largest number of batches between two steps; the warm-up starts from 1.
        apart = max(trainer.accumulate, round(trainer.args.nbs / trainer.batch_size))
        if done + apart >= planned:  # no step follows
            return schedule.end
        return done / (planned if schedule.unit == "fraction" else batches)


def _will_be_skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer got infinite gradients; other optimizers are not called then."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def sparsity(model: nn.Module) -> float:
    """Return the fraction of zeros in the weights that are pruned by default."""
    metric = Sparsity()
    metric.update(model)
    return float(metric.compute())


def main() -> None:
    """Train with pruning, and count the zeros in the files of Ultralytics."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="yolo26n.yaml", help="a YAML or .pt file")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--size", type=int, default=96, help="size of an image; a multiple of 32")
    parser.add_argument("--images", type=int, default=256, help="number of training images")
    parser.add_argument("--folder", type=Path, default=Path("yolo26_runs"))
    parser.add_argument("--resume", type=Path, help="a last.pt of an interrupted training")
    arguments = parser.parse_args()

    images = arguments.images
    data = ShapesDataModule(arguments.size, images, max(images // 4, 16))
    description = write_shapes(arguments.folder / "shapes", data)
    pruner = Pruner(sparsity=arguments.sparsity)
    model = YOLO(arguments.resume or arguments.weights)
    UltralyticsPruning(pruner).add_to(model)
    model.train(
        data=description,
        epochs=arguments.epochs,
        imgsz=arguments.size,
        batch=16,
        nbs=16,  # a step for each batch, since batches are few
        project=arguments.folder.resolve(),
        name="train",
        nms=False,  # validates the one-to-one head, which needs no suppression
        plots=False,
        resume=arguments.resume is not None,
    )
    print(f"sparsity of the masks {pruner.sparsity:.4f}")
    for name in ("best", "last"):
        saved = YOLO(model.trainer.wdir / f"{name}.pt").model
        zeros = sparsity(saved)
        fused = sparsity(copy.deepcopy(saved).fuse(verbose=False))
        print(f"sparsity of {name}.pt {zeros:.4f}, with batch normalization folded in {fused:.4f}")
    print(f"mAP50 of best.pt {model.trainer.metrics['metrics/mAP50(B)']:.4f}")


if __name__ == "__main__":
    main()

"""Pruning Ultralytics' YOLO26 as a LightningModule: `python -m examples.yolo26`."""

import argparse
import copy
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel, load_checkpoint

from examples.shapes_data import SHAPES, ShapesDataModule
from lightning_prune import OneShotSchedule, PruningCallback, Sparsity, UniformAllocation

RECIPES: dict[str, dict[str, Any]] = {
    "dense": {"sparsity": 0.0},
    # As torch's pruning tutorial: the smallest 30 of 100 weights of each layer, at once.
    "0.3 at once": {
        "sparsity": 0.3,
        "schedule": OneShotSchedule(),
        "allocation": UniformAllocation(),
    },
    "0.9 gradually": {"sparsity": 0.9},
}


class YOLO26(LightningModule):
    """YOLO26 with its own two losses; it knows nothing of pruning.

    Args:
        classes: Number of classes.
        scale: ``"n"``, ``"s"``, ``"m"``, ``"l"`` or ``"x"``.
        weights: A ``.pt`` file of Ultralytics to start from; None for random weights.
        size: Height and width of an image, in pixels; a multiple of 32.
        learning_rate: Of AdamW after the warm-up; it falls to 0 along a cosine.
    """

    def __init__(
        self,
        classes: int = len(SHAPES),
        scale: str = "n",
        weights: Path | None = None,
        size: int = 96,
        learning_rate: float = 2e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = DetectionModel(f"yolo26{scale}.yaml", nc=classes, verbose=False)
        if weights is not None:
            self.net.load(load_checkpoint(weights)[0])
        self.net.end2end = True  # detections come from the one-to-one head, without suppression
        self.learning_rate = learning_rate
        self.example_input_array = torch.zeros(1, 3, size, size)
        self.val_map = MeanAveragePrecision()
        self.val_map.warn_on_many_detections = False  # the head always gives as many as it can

    def forward(self, images: Tensor) -> Tensor:
        """Return detections ``(images, detections, 6)``: left, top, right, bottom, score, class."""
        return self.net(images)[0]

    def on_fit_start(self) -> None:
        """Tell the loss how many epochs it has to pass from the one head to the other."""
        self.net.args = get_cfg(overrides={"epochs": self.trainer.max_epochs})
        self.net.criterion = self.net.init_criterion()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return box, class and distance losses of both heads, added up."""
        losses, parts = self.net(batch)
        self.log_dict({f"train_{name}": value for name, value in parts.items()})
        return losses.sum()

    def on_train_epoch_end(self) -> None:
        """Shift the weight from the one-to-many head to the one-to-one head."""
        self.net.criterion.update()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Compare detections with the objects that are there."""
        images = batch["img"]
        scale = torch.tensor(images.shape[-1:] + images.shape[-2:-1], device=images.device).repeat(2)
        centres, sizes = batch["bboxes"].chunk(2, dim=1)
        corners = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=1) * scale
        detections, truth = [], []
        for number, found in enumerate(self(images)):
            there = batch["batch_idx"] == number
            truth.append({"boxes": corners[there], "labels": batch["cls"][there, 0].long()})
            detections.append(
                {"boxes": found[:, :4], "scores": found[:, 4], "labels": found[:, 5].long()}
            )
        self.val_map.update(detections, truth)

    def on_validation_epoch_end(self) -> None:
        """Log the mean average precision: at an overlap of 0.5, and over 0.5 to 0.95."""
        precision = self.val_map.compute()
        self.log("val_map_50", precision["map_50"].to(self.device), prog_bar=True)
        self.log("val_map", precision["map"].to(self.device), prog_bar=True)
        self.val_map.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW, warmed up over a tenth of the training."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=steps, pct_start=0.1
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

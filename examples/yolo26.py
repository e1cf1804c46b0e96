"""Pruning YOLO26 of Ultralytics as a LightningModule: `python -m examples.yolo26`."""

import argparse
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from PIL import Image, ImageDraw
from rich.console import Console
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils import ASSETS

from examples.shapes_data import SHAPES, ShapesDataModule
from lightning_prune import (
    ChannelPattern,
    MacsBudget,
    OneShotSchedule,
    PruningCallback,
    UniformAllocation,
    export_onnx,
    report,
    shrink,
)

RECIPES: dict[str, dict[str, Any]] = {
    "dense": {"sparsity": 0.0},
    # As in the pruning tutorial of torch: the smallest 30 of 100 weights of each layer, at once.
    "one-shot": {
        "sparsity": 0.3,
        "schedule": OneShotSchedule(),
        "allocation": UniformAllocation(),
    },
    "gradual": {"sparsity": 0.9},
    "channels": {"sparsity": 0.5, "pattern": ChannelPattern(scope="all")},
    "half of the compute": {"budget": MacsBudget(keep=0.5), "pattern": ChannelPattern(scope="all")},
}


class YOLO26(LightningModule):
    """YOLO26 with the two losses of Ultralytics. It has no code for pruning.

    Args:
        classes: Number of classes.
        scale: ``"n"``, ``"s"``, ``"m"``, ``"l"`` or ``"x"``.
        weights: A ``.pt`` file of Ultralytics with the first weights; None for random weights.
        size: Height and width of an image, in pixels; a multiple of 32.
        learning_rate: The learning rate of AdamW after the warm-up; it falls to 0 along a cosine.
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
        self.net.end2end = True  # boxes are corners
        self.learning_rate = learning_rate
        self.example_input_array = torch.zeros(1, 3, size, size)
        self.val_map = MeanAveragePrecision()
        self.val_map.warn_on_many_detections = False  # the head always gives the most detections

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(images, 4 + classes, places)``: left, top, right, bottom and scores.

        The one-to-one head gives them for each place of the grid; it needs no suppression.
        """
        head = self.net.model[-1]
        found = self.net(images)[1]["one2one"]
        boxes = head.decode_bboxes(head.dfl(found["boxes"]), head.anchors.unsqueeze(0))
        return torch.cat([boxes * head.strides, found["scores"].sigmoid()], dim=1)

    def detect(self, images: Tensor) -> Tensor:
        """Return ``(images, detections, 6)``: corners, score and class, the best first."""
        return self.net.model[-1].postprocess(self(images).transpose(1, 2))

    def on_fit_start(self) -> None:
        """Tell the loss in how many epochs it must shift from one head to the other."""
        self.net.args = get_cfg(overrides={"epochs": self.trainer.max_epochs})
        self.net.criterion = self.net.init_criterion()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the sum of the box, class and distance losses of both heads."""
        losses, parts = self.net(batch)
        self.log_dict({f"train_{name}": value for name, value in parts.items()})
        return losses.sum()

    def on_train_epoch_end(self) -> None:
        """Shift the weight from the one-to-many head to the one-to-one head."""
        self.net.criterion.update()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Compare the detections with the true objects."""
        images = batch["img"]
        height, width = images.shape[-2:]
        scale = torch.tensor([width, height, width, height], device=images.device)
        centres, sizes = batch["bboxes"].chunk(2, dim=1)
        corners = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=1) * scale
        detections, truth = [], []
        for number, found in enumerate(self.detect(images)):
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
        """Return AdamW with a warm-up over a tenth of the training."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=steps, pct_start=0.1
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def deployed(model: YOLO26) -> YOLO26:
    """Return a copy to deploy: normalizations folded in, without the one-to-many head."""
    copy = YOLO26(**model.hparams)
    copy.net = deepcopy(model.net)
    copy.net.fuse(verbose=False)
    return copy.eval()


@torch.no_grad()
def draw_detections(model: YOLO26, data: ShapesDataModule, path: Path) -> None:
    """Draw detections with a score over 0.5 in eight images and in photographs of Ultralytics."""
    model.eval()
    images = [image for image, _ in list(data.validation)[:8]]
    for photograph in sorted(ASSETS.glob("*.jpg")):
        pixels = torch.from_numpy(np.array(Image.open(photograph).resize((256, 256))))
        images.append(pixels.permute(2, 0, 1) / 255)
    sheet = Image.new("RGB", (256 * len(images) // 2, 512))
    for number, image in enumerate(images):
        pixels = (image.permute(1, 2, 0) * 255).to(torch.uint8).numpy()
        picture = Image.fromarray(pixels).resize((256, 256))
        pen = ImageDraw.Draw(picture)
        for *corners, score, kind in model.detect(image.unsqueeze(0))[0].tolist():
            if score > 0.5:
                left, top, right, bottom = (256 / image.shape[-1] * corner for corner in corners)
                pen.rectangle((left, top, right, bottom), outline="red", width=2)
                pen.text((left + 4, top + 2), f"{SHAPES[int(kind)]} {score:.2f}", fill="white")
        sheet.paste(picture, (256 * (number // 2), 256 * (number % 2)))
    sheet.save(path)


def main() -> None:
    """Train with each recipe, export, and report the cost and the gain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--weights", type=Path, help="a .pt file to start from; else random")
    parser.add_argument("--scale", choices="nsmlx", default="n")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--images", type=int, default=256, help="number of training images")
    parser.add_argument("--size", type=int, default=96, help="size of an image; a multiple of 32")
    parser.add_argument("--folder", type=Path, default=Path("yolo26_runs"))
    parser.add_argument(
        "--latency", action=argparse.BooleanOptionalAction, default=True, help="whether to time"
    )
    arguments = parser.parse_args()

    arguments.folder.mkdir(parents=True, exist_ok=True)
    data = ShapesDataModule(arguments.size, arguments.images, max(arguments.images // 4, 16))
    images = torch.stack([image for image, _ in list(data.validation)[:4]])
    console = Console()
    rows = []
    for name in arguments.recipes:
        console.rule(name)
        seed_everything(0)
        model = YOLO26(scale=arguments.scale, weights=arguments.weights, size=arguments.size)
        trainer = Trainer(
            max_epochs=arguments.epochs,
            gradient_clip_val=10.0,  # as Ultralytics does
            callbacks=[PruningCallback(**RECIPES[name])],
            logger=False,
            enable_checkpointing=False,
        )
        trainer.fit(model, data)
        dense = None
        if "pattern" in RECIPES[name]:
            dense, model = deployed(model), shrink(model)
        (precision,) = trainer.validate(model, data, verbose=False)
        stem = arguments.folder / name
        draw_detections(model, data, stem.with_suffix(".png"))
        model = deployed(model)
        file = export_onnx(model, stem.with_suffix(".onnx"), example=images[:1], inputs=[images])
        timed = arguments.latency and name != "dense"
        bought = report(model, images[:1], dense=dense, latency=timed)
        bought.write(stem.with_suffix(".json"))
        console.print(bought.table())
        console.print(f"{file.path} answers as the module does, within {file.difference:.1e}")
        speedups = (f"{x.speedup:.2f} ({x.low:.2f} to {x.high:.2f})" for x in bought.latencies)
        cells = (
            name,
            f"{precision['val_map_50']:.3f}",
            f"{precision['val_map']:.3f}",
            f"{bought.sparsity:.4f}",
            f"{bought.total.nonzeros:,}",
            f"{bought.total.bytes / 1000:,.0f}",
            f"{bought.total.compressed_bytes / 1000:,.0f}",
            ", ".join(speedups),
        )
        rows.append(f"| {' | '.join(cells)} |")
    columns = "recipe | mAP50 | mAP50-95 | sparsity | not zero | kB | kB compressed | times as fast"
    print(f"| {columns} |\n|---|---|---|---|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    main()

"""Pruning YOLO26 inside the trainer of Ultralytics: `python -m examples.yolo26_ultralytics`.

`--weights yolo11n.yaml` and `--weights yolov8n.yaml` train YOLO11 and YOLOv8.
"""

import argparse
import copy
from pathlib import Path

from torch import nn
from ultralytics import YOLO

from examples.shapes_data import ShapesDataModule, write_shapes
from lightning_prune import Sparsity
from lightning_prune.integrations.ultralytics import PruningYoloCallbacks


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
    model = YOLO(arguments.resume or arguments.weights)
    pruning = PruningYoloCallbacks(sparsity=arguments.sparsity)
    pruning.add_to(model)
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
    print(f"sparsity of the masks {pruning.sparsity:.4f}")
    for name in ("best", "last"):
        saved = YOLO(model.trainer.wdir / f"{name}.pt").model
        zeros = sparsity(saved)
        fused = sparsity(copy.deepcopy(saved).fuse(verbose=False))
        print(f"sparsity of {name}.pt {zeros:.4f}, with batch normalization folded in {fused:.4f}")
    print(f"mAP50 of best.pt {model.trainer.metrics['metrics/mAP50(B)']:.4f}")


if __name__ == "__main__":
    main()

"""The model and the data of ``lightning-prune demo``, as a user would write them."""

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

SIZE = 16  # height and width of an image, in pixels
SHAPES = ("disc", "square", "triangle", "cross")


def draw_shapes(images: int, *, noise: float, seed: int) -> TensorDataset:
    """Return images ``(1, 16, 16)`` of a shape on noise, and the number of the shape.

    Args:
        images: Number of images.
        noise: Standard deviation of the noise; the shape is brighter by 1.
        seed: Decides the shapes, with their places and sizes, and the noise.
    """
    random = np.random.default_rng(seed)
    shapes = random.integers(len(SHAPES), size=images)
    radius = random.uniform(2.5, 5, (images, 1, 1))
    x, y = radius + (SIZE - 2 * radius) * random.random((2, images, 1, 1))
    pixels = np.arange(SIZE) + 0.5
    right, down = pixels.reshape(1, 1, -1) - x, pixels.reshape(1, -1, 1) - y
    near, far = np.minimum(abs(right), abs(down)), np.maximum(abs(right), abs(down))
    drawn = np.stack(
        [
            right**2 + down**2 < radius**2,
            far < 0.9 * radius,
            (abs(down) < radius) & (abs(right) < (down + radius) / 2),
            (far < radius) & (near < radius / 3),
        ]
    )
    bright = drawn[shapes, np.arange(images)]
    pictures = bright + noise * random.normal(size=bright.shape)
    channels = torch.from_numpy(pictures.astype(np.float32)).unsqueeze(1)
    return TensorDataset(channels, torch.from_numpy(shapes))


class ShapesClassifier(LightningModule):
    """Tells drawn shapes apart. It has no code for pruning.

    Args:
        learning_rate: The learning rate of AdamW at the start; it falls to 0 along a cosine.
    """

    def __init__(self, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, len(SHAPES)),
        )
        self.val_acc = MulticlassAccuracy(len(SHAPES), average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return a logit of each shape for each image."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        images, shapes = batch
        loss = nn.functional.cross_entropy(self(images), shapes)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        images, shapes = batch
        self.val_acc(self(images), shapes)
        self.log("val_acc", self.val_acc, prog_bar=True)

    test_step = validation_step

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """Return AdamW and the cosine of the learning rate."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


class ShapesDataModule(LightningDataModule):
    """Drawn shapes: nothing is downloaded.

    Args:
        images: Number of training images.
        batch_size: Number of images in a batch.
        noise: Standard deviation of the noise; a shape is brighter by 1.
    """

    def __init__(self, images: int = 2048, batch_size: int = 32, noise: float = 0.2) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.train = draw_shapes(images, noise=noise, seed=0)
        self.validation = draw_shapes(1024, noise=noise, seed=1)
        self.test = draw_shapes(1024, noise=noise, seed=2)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return shuffled training batches."""
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the validation images."""
        return DataLoader(self.validation, batch_size=256)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the test images."""
        return DataLoader(self.test, batch_size=256)

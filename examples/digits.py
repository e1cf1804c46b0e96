"""A small convolutional classifier of handwritten digits: the demo's model and data."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from examples.digits_data import convolutional_net, load_digits_splits


class DigitsClassifier(LightningModule):
    """Classifies 8 x 8 images. It has no code for pruning.

    Args:
        learning_rate: The learning rate of AdamW at the start; it falls to 0 along a cosine.
        decay: The fraction of the training in which the learning rate falls, in (0, 1].
    """

    def __init__(self, learning_rate: float = 3e-3, decay: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.decay = decay
        self.net = convolutional_net()
        self.example_input_array = torch.zeros(2, 1, 8, 8)
        self.val_acc = MulticlassAccuracy(10, average="micro")
        self.test_acc = MulticlassAccuracy(10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return ten logits for each image."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        images, labels = batch
        logits = self(images)
        self.val_acc(logits, labels)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels))
        self.log("val_acc", self.val_acc, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        images, labels = batch
        self.test_acc(self(images), labels)
        self.log("test_acc", self.test_acc)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the most likely digits."""
        return self(batch[0]).argmax(1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and the cosine of the learning rate."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        steps = round(self.decay * self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": cosine, "interval": "step"},
        }


class DigitsDataModule(LightningDataModule):
    """The digits of scikit-learn in three splits.

    Args:
        batch_size: Number of images in a batch.
    """

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Load the images."""
        self.train, self.validation, self.test = load_digits_splits()

    def train_dataloader(self) -> DataLoader:
        """Return shuffled training batches."""
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the validation images."""
        return DataLoader(self.validation, batch_size=256)

    def test_dataloader(self) -> DataLoader:
        """Return the test images."""
        return DataLoader(self.test, batch_size=256)

    def predict_dataloader(self) -> DataLoader:
        """Return the test images."""
        return DataLoader(self.test, batch_size=256)

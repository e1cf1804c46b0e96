"""A classifier that knows nothing of pruning, and a Trainer that prints nothing."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Classifier(LightningModule):
    """A network that learns by cross-entropy, while a cosine takes the learning rate to 0.

    Args:
        net: The network; it returns logits.
        make_optimizer: Makes the optimizer of the parameters.
        cosine_epochs: Epochs after which the cosine reaches 0; by default the whole training.
    """

    def __init__(
        self,
        net: nn.Module,
        make_optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
        *,
        cosine_epochs: int | None = None,
    ) -> None:
        super().__init__()
        self.net, self.make_optimizer, self.cosine_epochs = net, make_optimizer, cosine_epochs

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and the cosine, which moves at each step."""
        optimizer = self.make_optimizer(self.parameters())
        steps = int(self.trainer.estimated_stepping_batches)
        if self.cosine_epochs is not None:
            steps = steps // self.trainer.max_epochs * self.cosine_epochs
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def make_quiet_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    """Return a Trainer on the CPU without a logger, checkpoints, a progress bar or a summary.

    Args:
        callbacks: The only callbacks.
        options: Further options of the Trainer.
    """
    return Trainer(**{**QUIET, "callbacks": list(callbacks), **options})


@torch.no_grad()
def measure_accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the accuracy of a network in eval mode, in points."""
    was_training = net.training
    logits = net.eval()(images)
    net.train(was_training)
    return count_points(logits, labels)


def count_points(logits: Tensor, labels: Tensor) -> float:
    """Return the accuracy of answers in points.

    Examples:
        >>> count_points(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
        50.0
    """
    return 100 * float((logits.argmax(1) == labels).double().mean())

"""Models, and what Lightning runs beside them, in several tests."""

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import LambdaCallback, LearningRateFinder
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from tests.callbacks.conftest import Classifier


class Gan(LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = nn.Linear(16, 16), nn.Linear(16, 16)

    def training_step(self, batch, batch_idx):
        for optimizer, net in zip(
            self.optimizers(), (self.generator, self.discriminator), strict=True
        ):
            optimizer.zero_grad()
            self.manual_backward(net(batch[0]).square().mean())
            optimizer.step()

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters()),
            torch.optim.SGD(self.discriminator.parameters(), lr=0.1, momentum=0.9),
        ]


class Tuned(Classifier):
    """Has a learning rate, a batch size and its own data, for the finders."""

    def __init__(self, data, lr=1e-3, batch_size=4):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for layer in (self.net[0], self.net[2]):
                layer.reset_parameters()
        self.data, self.lr, self.batch_size = data, lr, batch_size

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=self.batch_size)

    validation_step = LightningModule.validation_step  # a late finder stops at validation

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.1)


class LateFinder(LearningRateFinder):
    """Looks for the learning rate in the middle of training, as Lightning's docs show."""

    def on_fit_start(self, trainer, pl_module):
        pass

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


def at_epoch(epoch, do):
    def start(trainer, module):
        if trainer.current_epoch == epoch:
            do(trainer, module)

    return LambdaCallback(on_train_epoch_start=start)


def half_precision():
    """Sixteen bits with a scale so huge that the first steps are skipped."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    return MixedPrecision("16-mixed", device="cpu", scaler=scaler)

"""A model, two criteria and a Trainer for pruning without training."""

from dataclasses import dataclass

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import Criterion


@dataclass(frozen=True, kw_only=True)
class WeightTimesGradient(Criterion):
    def observe(self, tensor, state):
        product = (tensor.parameter * tensor.parameter.grad).detach().abs()
        return {"sum": state["sum"] + product if state else product}

    def score(self, tensor, state):
        return state["sum"]


@dataclass(frozen=True, kw_only=True)
class Gradient(Criterion):
    def score(self, tensor, state):
        return tensor.gradient.abs()


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)
        )
        self.modes = []

    def training_step(self, batch, batch_idx):
        self.modes.append(self.training)
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1)
        steps = self.trainer.estimated_stepping_batches
        return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps)]

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(48, 8, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(48) % 4), batch_size=8)

    val_dataloader = train_dataloader


def trainer_with(*callbacks, **arguments):
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "max_epochs": 2,
    }
    return Trainer(callbacks=list(callbacks), **(defaults | arguments))


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}

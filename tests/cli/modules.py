"""Modules that projects of the tests hold."""

CLASSIFIER = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


class Data(LightningDataModule):
    def train_dataloader(self):
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(80, 16, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(80) % 4), batch_size=20)

    val_dataloader = train_dataloader
"""

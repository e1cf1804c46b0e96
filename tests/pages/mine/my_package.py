"""A package of a user, as the pages name it: a model and data."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class MyModule(LightningModule):
    def __init__(self, learning_rate=0.01):
        super().__init__()
        self.learning_rate = learning_rate
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch):
        inputs, labels = batch
        return cross_entropy(self(inputs), labels)

    def validation_step(self, batch):
        self.log("val_loss", self.training_step(batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


class MyData(LightningDataModule):
    def train_dataloader(self):
        inputs = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=16)

    def val_dataloader(self):
        return self.train_dataloader()

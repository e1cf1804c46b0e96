"""Small models, pruned at once with a repair."""

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import (
    PruningCallback,
    UniformAllocation,
    prune_once,
)
from tests.post_training.models import trainer_with


class Conv1D(nn.Module):
    """As Hugging Face's: the weight is input first."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class Model(LightningModule):
    """Any layers, with the output as a loss."""

    def __init__(self, net, images, batch_size=8):
        super().__init__()
        self.net, self.batch_size = net, batch_size
        self.images = images.to(next(net.parameters()).dtype)
        self.example_input_array = self.images[:2]

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = self(batch[0]).float().square().mean()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self(batch[0]).float().square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.images), batch_size=self.batch_size)

    val_dataloader = train_dataloader


class Manual(Model):
    """Steps by itself."""

    def __init__(self, net, images):
        super().__init__(net, images)
        self.automatic_optimization = False

    def training_step(self, batch):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self(batch[0]).square().mean())
        optimizer.step()


def make_perceptron(kind=Model, dtype=torch.float32):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    net.append(nn.LayerNorm(32)).append(nn.Linear(32, 8)).to(dtype)
    return kind(net, torch.randn(64, 16) @ torch.randn(16, 16))


def prune(model, repair=None, batches=8, **recipe):
    recipe = {"sparsity": 0.5, "allocation": UniformAllocation(), **recipe}
    trainer = trainer_with(PruningCallback(**recipe))
    return prune_once(trainer, model, batches=batches, repair=repair)


def lose(model, dense):
    """Return the squared error of the outputs, over that of the mean output."""
    with torch.no_grad():
        outputs = [each.eval()(each.images).double() for each in (model, dense)]
    return float((outputs[0] - outputs[1]).square().sum() / (outputs[1]).square().sum())


def check_zeros(report, model):
    for name, mask in report.pruner.masks.items():
        assert (model.get_parameter(name)[~mask] == 0).all()
    kept = {group.name: group.kept for group in report.pruner.groups}
    masks = report.pruner.masks
    assert kept == {name: int(masks[name].sum()) for name in kept}

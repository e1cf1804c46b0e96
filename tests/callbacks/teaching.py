"""Models that are taught, and the same lesson by hand."""

import torch
from torch import nn

from tests.callbacks.conftest import Classifier

HIDDEN = 32


class Forwarding(Classifier):
    """Calls itself, as many modules do."""

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return {"loss": nn.functional.cross_entropy(self(batch[0]), batch[1])}


class Noisy(Classifier):
    """Draws random numbers in training and in evaluation, and has statistics of its batches."""

    def __init__(self):
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(HIDDEN))
        self.net.insert(2, nn.Dropout(0.5))
        self.net.insert(3, Noise())


class Noise(nn.Module):
    def forward(self, x):
        return x + 0.01 * torch.randn_like(x)


def make(kind=Classifier, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind()


def teach_by(distillation, model):
    """Let a fit start from a snapshot of these weights."""
    take_up = distillation.setup

    def setup(trainer, module, stage):
        take_up(trainer, module, stage)
        distillation.load_state_dict({"teacher": model.state_dict()})

    distillation.setup = setup


def soft_loss(student, teacher, temperature):
    """The divergence as Hinton's paper writes it, class by class."""
    p, q = ((z / temperature).softmax(1) for z in (teacher, student))
    return temperature**2 * (p * (p.log() - q.log())).sum() / len(p)


def by_hand(loader, *, temperature=None, features=(), weight=1.0, accumulate=1, steps=20):
    """Train as the Trainer does, with a teacher in the loop; return the model and its losses."""
    model, teacher = make(), make(seed=7)
    optimizer = model.configure_optimizers()
    losses, done = [], 0
    while done < steps:
        for x, y in loader:
            hidden, taught = model.net[:2](x), teacher.net[:2](x).detach()
            logits, answers = model.net[2](hidden), teacher.net[2](taught).detach()
            loss = torch.zeros(())
            if temperature is not None:
                loss = loss + soft_loss(logits, answers, temperature)
            for factor in features:
                loss = loss + factor * ((hidden - taught) ** 2).sum() / hidden.numel()
            losses.append(loss.item())
            total = nn.functional.cross_entropy(logits, y) + weight * loss
            (total / accumulate).backward()
            done += 1
            if done % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    return model, losses


def close(one, other):
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-5)

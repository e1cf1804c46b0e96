"""Small networks with residual branches, and a plain loop that prunes these."""

import torch
from torch import nn

from lightning_prune import BranchPattern, PolynomialSchedule, Pruner
from tests.engine.training import OPTIMIZERS

STEPS = 8


class BasicBlock(nn.Module):
    """The block of a small ResNet; a ReLU follows the sum."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        is_same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    """Two stages: three blocks of width 8, and two of width 16, the first with a stride."""

    example_input_array = torch.zeros(2, 3, 8, 8)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        first = [BasicBlock(8, 8) for _ in range(3)]
        self.blocks = nn.Sequential(*first, BasicBlock(8, 16, 2), BasicBlock(16, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


class Block(nn.Module):
    """Attention and feed-forward layers, normalized before or after, as GPT and BERT do."""

    def __init__(self, *, normalized_first, scaled):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.dropout = nn.Dropout(0.1)
        self.scale = nn.Parameter(torch.full((8,), 0.5)) if scaled else 1.0
        self.normalized_first = normalized_first

    def forward(self, x):
        if self.normalized_first:
            x = x + self.scale * self.attend(self.norm1(x))
            return x + self.dropout(self.down(self.up(self.norm2(x)).relu()))
        x = self.norm1(x + self.scale * self.attend(x))
        return self.norm2(x + self.dropout(self.down(self.up(x).relu())))

    def attend(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Transformer(nn.Module):
    """Words with positions, two blocks, and a head."""

    example_input_array = torch.zeros(2, 5, dtype=torch.long)

    def __init__(self, *, normalized_first=True, scaled=False):
        super().__init__()
        self.words, self.positions = nn.Embedding(11, 8), nn.Parameter(torch.randn(5, 8))
        self.blocks = nn.ModuleList(
            Block(normalized_first=normalized_first, scaled=scaled) for _ in range(2)
        )
        self.head = nn.Linear(8, 11)

    def forward(self, words):
        x = self.words(words) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def batch(model):
    example = model.example_input_array
    return torch.randn(example.shape) if example.is_floating_point() else example


def start(model, kind="adamw", state=None, **recipe):
    optimizer = OPTIMIZERS[kind](model.parameters())
    schedule = PolynomialSchedule(begin=1, end=6, every=1, unit="step")
    answers = {"pattern": BranchPattern(), "schedule": schedule, **recipe}
    pruner = Pruner(**answers)
    if state is not None:
        pruner.load_state_dict(state)
    pruner.attach(model, optimizer, steps=STEPS)
    return optimizer, pruner


def train(model, optimizer, pruner, first=0, steps=STEPS, check=lambda: None):
    for step in range(first, first + steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(batch(model)).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()
        check()


def prune(model, kind="adamw", **recipe):
    optimizer, pruner = start(model, kind, **recipe)
    train(model, optimizer, pruner)
    pruner.detach()
    return pruner

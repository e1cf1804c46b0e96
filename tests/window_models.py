"""Attention in shifted windows."""

import torch
from torch import nn


class WindowAttention(nn.Module):
    """Swin's, with shifted windows, a mask and a table of biases by relative position."""

    def __init__(self, width=16, heads=4, window=2):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.head_size, self.window = heads, width // heads, window
        self.biases = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        positions = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        offsets = positions[:, None] - positions + window - 1
        self.register_buffer("index", offsets[..., 0] * (2 * window - 1) + offsets[..., 1])

    def forward(self, x):
        batch, height, breadth, width = x.shape
        side, length = self.window, self.window**2
        y = self.norm(x).roll((-1, -1), (1, 2))
        y = y.view(batch, height // side, side, breadth // side, side, width)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(-1, length, width)
        shape = (-1, length, 3, self.heads, self.head_size)
        queries, keys, values = self.qkv(y).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (queries * self.head_size**-0.5) @ keys.transpose(-2, -1)
        biases = self.biases[self.index.view(-1)].view(length, length, -1)
        scores = scores + biases.permute(2, 0, 1).unsqueeze(0)
        windows = height // side * (breadth // side)
        mask = torch.zeros(windows, length, length)
        scores = scores.view(batch, windows, self.heads, length, length) + mask[None, :, None]
        mixed = scores.view(-1, self.heads, length, length).softmax(-1) @ values
        y = self.out(mixed.transpose(1, 2).reshape(-1, length, self.heads * self.head_size))
        y = y.view(batch, height // side, breadth // side, side, side, width)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(x.shape)
        return x + y.roll((1, 1), (1, 2))


class Swin(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, 16, 2, 2), WindowAttention()
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        return self.head(self.attention(self.patches(images).permute(0, 2, 3, 1)).mean((1, 2)))

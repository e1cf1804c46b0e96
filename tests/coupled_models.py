"""Small models whose channels are coupled in the ways that are met in practice."""

import torch
from torch import nn
from torch.nn import functional

from tests.window_models import Swin


def convolution(inputs, outputs, kernel=3, groups=1):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Headed(nn.Module):
    """Some convolutions, then the mean over positions and a linear layer."""

    def __init__(self, body, width, classes=3):
        super().__init__()
        self.body, self.head = body, nn.Linear(width, classes)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))


class ResidualBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.first, self.second = convolution(inputs, outputs), convolution(outputs, outputs)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        return functional.relu(self.second(self.first(x)) + self.skip(x))


class GatedInvertedResidual(nn.Module):
    """MobileNetV2's block with EfficientNet's gate, whose sigmoid is not 0 at 0."""

    def __init__(self, width, hidden):
        super().__init__()
        self.expand = convolution(width, hidden, 1)
        self.depthwise = convolution(hidden, hidden, 3, groups=hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, 4, 1), nn.Conv2d(4, hidden, 1)
        self.project = nn.Conv2d(hidden, width, 1)

    def forward(self, x):
        hidden = self.depthwise(self.expand(x))
        pooled = functional.adaptive_avg_pool2d(hidden, 1)
        gate = torch.sigmoid(self.excite(functional.silu(self.squeeze(pooled))))
        return x + self.project(hidden * gate)


class DenseBlock(nn.Module):
    def __init__(self, width, growth):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(size), nn.ReLU(), nn.Conv2d(size, growth, 3, padding=1))
            for size in (width, width + growth)
        )

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.bottom = convolution(3, 8), convolution(8, 16)
        self.up, self.join = nn.ConvTranspose2d(16, 8, 2, 2), convolution(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, images):
        fine = self.down(images)
        coarse = self.up(self.bottom(functional.max_pool2d(fine, 2)))
        return self.out(self.join(torch.cat([coarse, fine], 1)))


class ChunkedBlock(nn.Module):
    """YOLO's C2f: one convolution is cut in two halves, one of which is worked on."""

    def __init__(self, width):
        super().__init__()
        self.first, self.inner = convolution(width, width, 1), convolution(width // 2, width // 2)
        self.last = convolution(width * 3 // 2, width, 1)

    def forward(self, x):
        parts = list(self.first(x).chunk(2, 1))
        parts.append(parts[-1] + self.inner(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Attention(nn.Module):
    def __init__(self, width=16, heads=4):
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.heads = heads

    def forward(self, x):
        def cut(y):
            return y.view(*y.shape[:2], self.heads, -1).transpose(1, 2)

        queries, keys, values = cut(self.query(x)), cut(self.key(x)), cut(self.value(x))
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        return self.out(mixed.transpose(1, 2).flatten(2))


class FusedAttention(nn.Module):
    """As timm's: queries, keys and values come out of one layer."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.head_size = heads, width // heads

    def forward(self, x):
        batch, length, _ = x.shape
        shape = (batch, length, 3, self.heads, self.head_size)
        queries, keys, values = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (queries @ keys.transpose(-2, -1)) * self.head_size**-0.5
        mixed = scores.softmax(-1) @ values
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


class Encoder(nn.Module):
    """A vision transformer of one layer."""

    def __init__(self, attention, width=16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 5, width))
        self.norm, self.attention = nn.LayerNorm(width), attention
        self.second_norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 24), nn.Linear(24, width)
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(width, 3)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        x = x + self.attention(self.norm(x))
        hidden = functional.gelu(self.up(self.second_norm(x)))
        return self.head((x + self.dropout(self.down(hidden)))[:, 0])


class TorchEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        return self.head(self.layer(self.embed(images).flatten(2).transpose(1, 2)).mean(1))


class MaskedEncoder(nn.Module):
    """It compares the mask with the causal mask before it attends."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2)
        return self.head(self.body(x, mask=self.mask).mean(1))


class ShuffleBlock(nn.Module):
    """ShuffleNetV2's: one half of the channels is worked on, then the halves are woven together."""

    def __init__(self, width):
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            convolution(half, half, 1),
            convolution(half, half, 3, groups=half),
            convolution(half, half, 1),
        )

    def forward(self, x):
        first, second = x.chunk(2, 1)
        batch, width, *size = x.shape
        x = torch.cat([first, self.branch(second)], 1)
        return x.view(batch, 2, width // 2, *size).transpose(1, 2).flatten(1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.scale = nn.LayerNorm(width), nn.Parameter(torch.ones(width))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        hidden = functional.gelu(self.up(self.norm(self.depthwise(x).permute(0, 2, 3, 1))))
        return x + (self.scale * self.down(hidden)).permute(0, 3, 1, 2)


class Renamed(nn.Module):
    """As MONAI's DynUNet: layers hang under names of their own and in a list that is called."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16, affine=True)
        self.second, self.head = convolution(16, 8), nn.Linear(8, 3)
        self.steps = nn.ModuleList([self.first, self.norm, self.second])

    def forward(self, images):
        for step in self.steps:
            images = step(images).relu()
        return self.head(images.mean((2, 3)))


class RenamedAttention(nn.Module):
    """Attention of torch under two names, which are both called, and as a part of a list."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 3)
        self.attention = self.again = nn.MultiheadAttention(16, 4, batch_first=True)
        self.layers = nn.ModuleList([self.embed, self.attention])

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = x + self.again(x, x, x)[0] + self.layers[1](x, x, x, need_weights=False)[0]
        return self.head((x + self.attention(x, x, x)[0]).mean(1))


class WithIdleHead(nn.Module):
    """A head for training beside the head that counts: it is computed and thrown away."""

    def __init__(self):
        super().__init__()
        self.body, self.head = convolution(3, 8), Headed(nn.Identity(), 8)
        self.idle = nn.Sequential(convolution(8, 8), nn.Conv2d(8, 2, 1))

    def forward(self, x):
        x = self.body(x)
        self.idle(x).flatten(1)
        return self.head(x)


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 12),
        nn.ReLU(),
        nn.Linear(12, 3),
    )


def normed(norm):
    return nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.ReLU(), nn.Conv2d(16, 8, 3), nn.GELU())


def shuffled():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ChannelShuffle(2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU()
    )


MODELS = {
    "plain": plain,
    "residual": lambda: Headed(
        nn.Sequential(convolution(3, 8), ResidualBlock(8, 8), ResidualBlock(8, 16)), 16
    ),
    "gated": lambda: Headed(nn.Sequential(convolution(3, 8), GatedInvertedResidual(8, 16)), 8),
    "dense": lambda: Headed(nn.Sequential(nn.Conv2d(3, 8, 3), DenseBlock(8, 8)), 24),
    "idle head": WithIdleHead,
    "unet": UNet,
    "chunked": lambda: Headed(nn.Sequential(convolution(3, 16), ChunkedBlock(16)), 16),
    "attention": lambda: Encoder(Attention()),
    "fused attention": lambda: Encoder(FusedAttention()),
    "torch attention": TorchEncoder,
    "mask in torch attention": MaskedEncoder,
    "norm groups": lambda: Headed(normed(nn.GroupNorm(4, 16)), 8),
    "instance norm": lambda: Headed(normed(nn.InstanceNorm2d(16)), 8),
    "grouped": lambda: Headed(
        nn.Sequential(convolution(3, 16), convolution(16, 16, 3, groups=4)), 16
    ),
    "sigmoid": lambda: Headed(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid()), 8),
    "shuffled": lambda: Headed(shuffled(), 8),
    "shufflenet": lambda: Headed(
        nn.Sequential(convolution(3, 16), ShuffleBlock(16), ShuffleBlock(16)), 16
    ),
    "convnext": lambda: Headed(nn.Sequential(nn.Conv2d(3, 8, 3), ConvNeXtBlock(8)), 8),
    "swin": Swin,
    "two names": Renamed,
    "attention under two names": RenamedAttention,
}


def example():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))

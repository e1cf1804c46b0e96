"""The shapes of well-known networks, written out: what `benchmarks/channels.py` prunes.

They follow the papers in how their channels meet (additions, gates, concatenations, heads), which
is what pruning channels depends on, and are made for images of 32 x 32 and for short sentences.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
WORDS = 1000
PADDING = 0  # the word that fills up short sentences


def convolution(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Return a convolution, its normalisation and an activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        activation(),
    )


class PooledClassifier(nn.Module):
    """Some layers, the mean over positions, and a linear layer."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.body(images).mean((2, 3)))


class BasicBlock(nn.Module):
    """He et al., "Deep Residual Learning for Image Recognition" (2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, stride=stride)
        self.second = convolution(outputs, outputs, activation=nn.Identity)
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs:
            self.skip = convolution(inputs, outputs, 1, stride=stride, activation=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to, rectified."""
        return functional.relu(self.second(self.first(x)) + self.skip(x))


def resnet18(scale: float = 1.0) -> nn.Module:
    """Return ResNet-18 with the stem for small images."""
    widths = [_scaled(width, scale) for width in (64, 128, 256, 512)]
    layers: list[nn.Module] = [convolution(3, widths[0])]
    inputs = widths[0]
    for stage, width in enumerate(widths):
        layers.append(BasicBlock(inputs, width, stride=1 if stage == 0 else 2))
        layers.append(BasicBlock(width, width, stride=1))
        inputs = width
    return PooledClassifier(nn.Sequential(*layers), inputs)


class SqueezeAndExcite(nn.Module):
    """A gate for each channel: Hu et al., "Squeeze-and-Excitation Networks" (2018)."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated channels."""
        pooled = functional.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.excite(functional.silu(self.squeeze(pooled))))


class InvertedResidual(nn.Module):
    """Widen, a depthwise convolution, narrow: MobileNetV2's block, or with gates EfficientNet's."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        expansion: int,
        stride: int,
        kernel: int,
        activation: Callable[[], nn.Module],
        gated: bool,
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers.append(convolution(inputs, hidden, 1, activation=activation))
        layers.append(
            convolution(hidden, hidden, kernel, stride=stride, groups=hidden, activation=activation)
        )
        if gated:
            layers.append(SqueezeAndExcite(hidden, max(8, inputs // 4)))
        layers.append(convolution(hidden, outputs, 1, activation=nn.Identity))
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the narrow result, added to the input if it has that shape."""
        return x + self.layers(x) if self.adds else self.layers(x)


def mobilenet_v2(scale: float = 1.0) -> nn.Module:
    """Return the shape of Sandler et al., "MobileNetV2" (2018), https://arxiv.org/abs/1801.04381."""
    # expansion, width, blocks, stride, kernel
    stages = (
        *((1, 16, 1, 1, 3), (6, 24, 2, 1, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3)),
        *((6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3)),
    )
    return _inverted_residuals(stages, scale, nn.ReLU6, gated=False)


def efficientnet_b0(scale: float = 1.0) -> nn.Module:
    """Return the shape of Tan & Le, "EfficientNet" (2019), https://arxiv.org/abs/1905.11946."""
    stages = (
        *((1, 16, 1, 1, 3), (6, 24, 2, 1, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)),
        *((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
    )
    return _inverted_residuals(stages, scale, nn.SiLU, gated=True)


def _inverted_residuals(
    stages: tuple[tuple[int, int, int, int, int], ...],
    scale: float,
    activation: Callable[[], nn.Module],
    *,
    gated: bool,
) -> nn.Module:
    inputs, last = _scaled(32, scale), _scaled(1280, scale)
    layers: list[nn.Module] = [convolution(3, inputs, activation=activation)]
    for expansion, width, blocks, stride, kernel in stages:
        for block in range(blocks):
            outputs = _scaled(width, scale)
            layers.append(
                InvertedResidual(
                    inputs,
                    outputs,
                    expansion=expansion,
                    stride=stride if block == 0 else 1,
                    kernel=kernel,
                    activation=activation,
                    gated=gated,
                )
            )
            inputs = outputs
    layers.append(convolution(inputs, last, 1, activation=activation))
    return PooledClassifier(nn.Sequential(*layers), last)


class DenseLayer(nn.Module):
    """It adds channels to those that it reads."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return all channels side by side."""
        return torch.cat([x, self.layers(x)], 1)


def densenet(scale: float = 1.0) -> nn.Module:
    """Return three blocks as in Huang et al., "Densely Connected Convolutional Networks" (2017)."""
    growth = _scaled(32, scale)
    width = 2 * growth
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False)]
    for stage in range(3):
        if stage > 0:
            halved = width // 2
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, halved, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            width = halved
        for _ in range(6):
            layers.append(DenseLayer(width, growth))
            width += growth
    return PooledClassifier(nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU()), width)


class UNet(nn.Module):
    """A class for each pixel: Ronneberger et al., "U-Net" (2015)."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        widths = [_scaled(width, scale) for width in (32, 64, 128, 256)]
        self.down = nn.ModuleList()
        self.widen, self.up = nn.ModuleList(), nn.ModuleList()
        inputs = 3
        for width in widths:
            self.down.append(nn.Sequential(convolution(inputs, width), convolution(width, width)))
            inputs = width
        for width in reversed(widths[:-1]):
            self.widen.append(nn.ConvTranspose2d(inputs, width, 2, 2))
            self.up.append(nn.Sequential(convolution(2 * width, width), convolution(width, width)))
            inputs = width
        self.head = nn.Conv2d(inputs, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(n, classes, height, width)``."""
        x, skipped = images, []
        for level, layers in enumerate(self.down):
            x = layers(x if level == 0 else functional.max_pool2d(x, 2))
            skipped.append(x)
        for widen, layers, skip in zip(self.widen, self.up, skipped[-2::-1], strict=True):
            x = layers(torch.cat([skip, widen(x)], 1))
        return self.head(x)


class SelfAttention(nn.Module):
    """Every position reads from all; words may be hidden."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.head_size = width // heads

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return ``(n, positions, width)``; the mask is True where a position may be read."""
        queries, keys, values = (
            layer(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.output(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention and a feed-forward network, normalised before (as in ViT) or after (BERT)."""

    def __init__(self, width: int, heads: int, *, normalised_first: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.normalised_first = normalised_first

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``(n, positions, width)``."""
        if self.normalised_first:
            x = x + self.attention(self.attention_norm(x), mask)
            return x + self.down(functional.gelu(self.up(self.norm(x))))
        x = self.attention_norm(x + self.attention(x, mask))
        return self.norm(x + self.down(functional.gelu(self.up(x))))


class VisionTransformer(nn.Module):
    """Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021)."""

    def __init__(self, scale: float = 1.0, depth: int = 6, heads: int = 8) -> None:
        super().__init__()
        width = _scaled(256, scale)
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) / 50)
        self.positions = nn.Parameter(torch.randn(1, 65, width) / 50)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, normalised_first=True) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, read off the extra token."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class Bert(nn.Module):
    """Devlin et al., "BERT" (2019): sentences of words, some of them padding, to classes."""

    def __init__(self, scale: float = 1.0, depth: int = 6, heads: int = 8) -> None:
        super().__init__()
        width = _scaled(256, scale)
        self.words = nn.Embedding(WORDS, width)
        self.positions = nn.Embedding(64, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, normalised_first=False) for _ in range(depth)
        )
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        """Return logits of sentences ``(n, positions)``."""
        x = self.words(words) + self.positions(torch.arange(words.shape[1], device=words.device))
        x, mask = self.norm(x), (words != PADDING)[:, None, None]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


def images(count: int, generator: torch.Generator) -> Tensor:
    """Return random images."""
    return torch.randn(count, 3, 32, 32, generator=generator)


def sentences(count: int, generator: torch.Generator) -> Tensor:
    """Return random sentences of 64 words, of which the last may be padding, never the first."""
    words = torch.randint(1, WORDS, (count, 64), generator=generator)
    lengths = torch.randint(16, 65, (count, 1), generator=generator)
    return words.masked_fill(torch.arange(64) >= lengths, PADDING)


Inputs = Callable[[int, torch.Generator], Tensor]

ARCHITECTURES: Mapping[str, tuple[Callable[[float], nn.Module], Inputs]] = {
    "ResNet-18": (resnet18, images),
    "MobileNetV2": (mobilenet_v2, images),
    "EfficientNet-B0": (efficientnet_b0, images),
    "DenseNet": (densenet, images),
    "U-Net": (UNet, images),
    "ViT": (VisionTransformer, images),
    "BERT": (Bert, sentences),
}


def _scaled(width: int, scale: float) -> int:
    """Return a multiple of 8 near a part of a width, at least 8."""
    return max(8, 8 * round(width * scale / 8))

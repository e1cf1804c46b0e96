"""Networks of plain convolutions, for images of 32 x 32: ResNet-18, DenseNet and U-Net.

They follow the papers in how channels meet: in additions, concatenations and heads. The pruning of
channels depends on these.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kit.networks.small import CLASSES, scale_width


def draw_images(count: int, generator: torch.Generator) -> Tensor:
    """Return random images."""
    return torch.randn(count, 3, 32, 32, generator=generator)


def build_convolution(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Return a convolution with batch normalization and an activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        activation(),
    )


class PooledClassifier(nn.Module):
    """A body, the mean over positions, and a linear layer."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.body(images).mean((2, 3)))


class BasicBlock(nn.Module):
    """Two convolutions and a skip: He et al., "Deep Residual Learning" (2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = build_convolution(inputs, outputs, stride=stride)
        self.second = build_convolution(outputs, outputs, activation=nn.Identity)
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs:
            self.skip = build_convolution(inputs, outputs, 1, stride=stride, activation=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rectified sum."""
        return functional.relu(self.second(self.first(x)) + self.skip(x))


def build_resnet18(scale: float = 1.0) -> nn.Module:
    """Return ResNet-18 with the stem for small images."""
    widths = [scale_width(width, scale) for width in (64, 128, 256, 512)]
    layers: list[nn.Module] = [build_convolution(3, widths[0])]
    inputs = widths[0]
    for stage, width in enumerate(widths):
        layers.append(BasicBlock(inputs, width, stride=1 if stage == 0 else 2))
        layers.append(BasicBlock(width, width, stride=1))
        inputs = width
    return PooledClassifier(nn.Sequential(*layers), inputs)


class DenseLayer(nn.Module):
    """New channels beside those that the layer reads."""

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


def build_densenet(scale: float = 1.0) -> nn.Module:
    """Return three blocks as in Huang et al., "Densely Connected Convolutional Networks" (2017)."""
    growth = scale_width(32, scale)
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
        widths = [scale_width(width, scale) for width in (32, 64, 128, 256)]
        self.down = nn.ModuleList()
        self.widen, self.up = nn.ModuleList(), nn.ModuleList()
        inputs = 3
        for width in widths:
            self.down.append(
                nn.Sequential(build_convolution(inputs, width), build_convolution(width, width))
            )
            inputs = width
        for width in reversed(widths[:-1]):
            self.widen.append(nn.ConvTranspose2d(inputs, width, 2, 2))
            self.up.append(
                nn.Sequential(build_convolution(2 * width, width), build_convolution(width, width))
            )
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

"""Networks of inverted residuals, for images of 32 x 32: MobileNetV2 and EfficientNet-B0."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kit.networks.convolutional import PooledClassifier, build_convolution
from benchmarks.kit.networks.small import scale_width


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
    """Widen, convolve each channel, narrow; the block of EfficientNet also has a gate."""

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
            layers.append(build_convolution(inputs, hidden, 1, activation=activation))
        layers.append(
            build_convolution(
                hidden, hidden, kernel, stride=stride, groups=hidden, activation=activation
            )
        )
        if gated:
            layers.append(SqueezeAndExcite(hidden, max(8, inputs // 4)))
        layers.append(build_convolution(hidden, outputs, 1, activation=nn.Identity))
        self.layers = nn.Sequential(*layers)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the narrow result, added to an input of the same shape."""
        return x + self.layers(x) if self.adds_input else self.layers(x)


class Stage(NamedTuple):
    """Blocks of the same width; the first block has the stride."""

    expansion: int
    width: int
    blocks: int
    stride: int
    kernel: int


def build_mobilenet_v2(scale: float = 1.0) -> nn.Module:
    """Return the shape of Sandler et al., "MobileNetV2" (2018), https://arxiv.org/abs/1801.04381."""
    stages = [
        *(Stage(1, 16, 1, 1, 3), Stage(6, 24, 2, 1, 3), Stage(6, 32, 3, 2, 3)),
        *(Stage(6, 64, 4, 2, 3), Stage(6, 96, 3, 1, 3), Stage(6, 160, 3, 2, 3)),
        Stage(6, 320, 1, 1, 3),
    ]
    return _stack_blocks(stages, scale, nn.ReLU6, gated=False)


def build_efficientnet_b0(scale: float = 1.0) -> nn.Module:
    """Return the shape of Tan & Le, "EfficientNet" (2019), https://arxiv.org/abs/1905.11946."""
    stages = [
        *(Stage(1, 16, 1, 1, 3), Stage(6, 24, 2, 1, 3), Stage(6, 40, 2, 2, 5)),
        *(Stage(6, 80, 3, 2, 3), Stage(6, 112, 3, 1, 5), Stage(6, 192, 4, 2, 5)),
        Stage(6, 320, 1, 1, 3),
    ]
    return _stack_blocks(stages, scale, nn.SiLU, gated=True)


def _stack_blocks(
    stages: Sequence[Stage], scale: float, activation: Callable[[], nn.Module], *, gated: bool
) -> nn.Module:
    """Return a classifier of inverted residuals."""
    build_block = partial(InvertedResidual, activation=activation, gated=gated)
    inputs, last = scale_width(32, scale), scale_width(1280, scale)
    layers: list[nn.Module] = [build_convolution(3, inputs, activation=activation)]
    for expansion, width, blocks, stride, kernel in stages:
        outputs = scale_width(width, scale)
        shape = {"expansion": expansion, "kernel": kernel}
        layers.append(build_block(inputs, outputs, stride=stride, **shape))
        layers += [build_block(outputs, outputs, stride=1, **shape) for _ in range(1, blocks)]
        inputs = outputs
    layers.append(build_convolution(inputs, last, 1, activation=activation))
    return PooledClassifier(nn.Sequential(*layers), last)

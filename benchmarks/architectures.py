"""The well-known networks that `benchmarks/channels.py` prunes, with their random inputs."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks.kit.networks.attention import Bert, VisionTransformer, draw_sentences
from benchmarks.kit.networks.convolutional import UNet, build_densenet, build_resnet18, draw_images
from benchmarks.kit.networks.inverted import build_efficientnet_b0, build_mobilenet_v2

Inputs = Callable[[int, torch.Generator], Tensor]

ARCHITECTURES: Mapping[str, tuple[Callable[[float], nn.Module], Inputs]] = {
    "ResNet-18": (build_resnet18, draw_images),
    "MobileNetV2": (build_mobilenet_v2, draw_images),
    "EfficientNet-B0": (build_efficientnet_b0, draw_images),
    "DenseNet": (build_densenet, draw_images),
    "U-Net": (UNet, draw_images),
    "ViT": (VisionTransformer, draw_images),
    "BERT": (Bert, draw_sentences),
}

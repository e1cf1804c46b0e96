"""Networks of segmentation_models_pytorch."""

from functools import partial

import torch

from benchmarks.parts.zoo.entry import Builder, Built

_NAMES = ("DeepLabV3Plus", "FPN", "Linknet", "MAnet", "PAN", "PSPNet", "Unet", "UnetPlusPlus")


def list_builders() -> dict[str, Builder]:
    """Return a builder for each network on a ResNet-18, by name."""
    return {name: partial(_build, name) for name in _NAMES}


def _build(name: str) -> Built:
    import segmentation_models_pytorch

    kind = getattr(segmentation_models_pytorch, name)
    return kind("resnet18", encoder_weights=None, classes=3), torch.randn(2, 3, 128, 128)

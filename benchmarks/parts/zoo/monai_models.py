"""Medical segmentation networks of MONAI, https://github.com/Project-MONAI/MONAI."""

from functools import partial
from typing import Any

import torch

from benchmarks.parts.zoo.entry import Builder, Built

_FLAT = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}


def list_builders() -> dict[str, Builder]:
    """Return a builder for each network, by name."""
    return {
        "AttentionUnet": partial(
            _build, "AttentionUnet", 32, **_FLAT, channels=(16, 32, 64), strides=(2, 2)
        ),
        "BasicUNet": partial(_build, "BasicUNet", 32, **_FLAT, features=(16, 16, 32, 32, 64, 16)),
        "DenseNet121": partial(_build, "DenseNet121", 64, **_FLAT),
        "DynUNet": partial(
            _build,
            "DynUNet",
            32,
            **_FLAT,
            kernel_size=(3, 3, 3),
            strides=(1, 2, 2),
            upsample_kernel_size=(2, 2),
            filters=(16, 32, 64),
        ),
        "HighResNet": partial(_build, "HighResNet", 32, **_FLAT),
        "SegResNet": partial(_build, "SegResNet", 32, **_FLAT, init_filters=16),
        "SwinUNETR": partial(_build, "SwinUNETR", 64, **_FLAT, feature_size=12),
        "UNet": partial(
            _build, "UNet", 32, **_FLAT, channels=(16, 32, 64), strides=(2, 2), num_res_units=2
        ),
        "UNETR": partial(
            _build,
            "UNETR",
            64,
            **_FLAT,
            img_size=64,
            feature_size=16,
            hidden_size=96,
            mlp_dim=192,
            num_heads=4,
        ),
        "VNet": partial(_build, "VNet", 32, **_FLAT),
    }


def _build(name: str, size: int, **options: Any) -> Built:
    from monai.networks import nets

    return getattr(nets, name)(**options), torch.randn(2, 1, size, size)

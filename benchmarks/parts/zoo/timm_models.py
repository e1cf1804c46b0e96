"""Image networks of timm, https://github.com/huggingface/pytorch-image-models."""

from collections.abc import Mapping
from functools import partial

import torch

from benchmarks.parts.zoo.entry import Builder, Built

_CONVOLUTIONAL = (
    "convnext_atto",
    "convnextv2_atto",
    "densenet121",
    "dla46_c",
    "edgenext_xx_small",
    "efficientnet_b0",
    "ese_vovnet19b_slim_dw",
    "fastvit_t8",
    "ghostnet_050",
    "hardcorenas_a",
    "hrnet_w18_small",
    "inception_next_atto",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "mobileone_s0",
    "nf_resnet26",
    "poolformer_s12",
    "regnety_002",
    "repvgg_a0",
    "res2net50_14w_8s",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "seresnet18",
    "tf_efficientnetv2_b0",
)
_SHAPED: Mapping[str, dict[str, object]] = {
    "beit_base_patch16_224": {"embed_dim": 96, "depth": 2, "num_heads": 3},
    "cait_xxs24_224": {"depth": 2},
    "deit_tiny_distilled_patch16_224": {"depth": 2},
    "efficientformer_l1": {},
    "levit_128s": {},
    "maxvit_rmlp_pico_rw_256": {},
    "mixer_s32_224": {},
    "mobilevit_xxs": {},
    "pit_ti_224": {},
    "resmlp_12_224": {},
    "swin_tiny_patch4_window7_224": {"embed_dim": 48, "depths": (2, 2), "num_heads": (3, 6)},
    "vit_tiny_patch16_224": {"depth": 2},
    "xcit_nano_12_p16_224": {"depth": 2},
}


def list_builders() -> dict[str, Builder]:
    """Return a builder for each network, by name."""
    plain = {name: partial(_build, name, 64) for name in _CONVOLUTIONAL}
    return plain | {name: partial(_build_shaped, name) for name in _SHAPED}


def _build(name: str, size: int, **options: object) -> Built:
    import timm

    model = timm.create_model(name, pretrained=False, num_classes=10, **options)
    return model, torch.randn(2, 3, size, size)


def _build_shaped(name: str) -> Built:
    size = 256 if name.endswith("256") else 224
    return _build(name, size, **_SHAPED[name])

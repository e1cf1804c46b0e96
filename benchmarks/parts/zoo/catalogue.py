"""Every model of the zoo, by library."""

from collections.abc import Callable, Mapping

from benchmarks.parts.zoo import (
    diffusers_models,
    graph_models,
    monai_models,
    segmentation_models,
    timm_models,
    transformers_models,
)
from benchmarks.parts.zoo.entry import Builder

LIBRARIES: Mapping[str, Callable[[], dict[str, Builder]]] = {
    "timm": timm_models.list_builders,
    "transformers": transformers_models.list_builders,
    "diffusers": diffusers_models.list_builders,
    "monai": monai_models.list_builders,
    "segmentation-models-pytorch": segmentation_models.list_builders,
    "torch-geometric": graph_models.list_builders,
}

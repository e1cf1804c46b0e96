"""Adapters stay dense by default, and the layers below them do not."""

import pytest
from torch import nn

from lightning_prune.models.prunable import find_parameters, prunable_weights, why_unusual
from tests.models.adapted import (
    DoraLinear,
    HadaLinear,
    LoraEmbedding,
    LoraLinear,
    LoraParameters,
    LoraTune,
    ShiraLinear,
    Stem,
)


@pytest.mark.parametrize(
    ("layer", "adapters", "weights"),
    [
        (LoraLinear(), ["lora_A.default.weight", "lora_B.default.weight"], ["base_layer.weight"]),
        (LoraEmbedding(), ["lora_embedding_A.default", "lora_embedding_B.default"], []),
        (
            DoraLinear(),
            [
                "lora_A.default.weight",
                "lora_B.default.weight",
                "lora_magnitude_vector.default.weight",
            ],
            ["base_layer.weight"],
        ),
        (HadaLinear(), ["hada_w1_a.weight", "hada_w1_b.weight"], ["base_layer.weight"]),
        (
            ShiraLinear(),
            ["shira_weight.default.weight", "shira_weight.default.bias"],
            ["base_layer.weight"],
        ),
        (LoraParameters(), ["lora_A", "lora_B"], ["weight"]),
        (LoraTune(), ["lora_a.weight", "lora_b.weight"], ["weight"]),
        (Stem(), [], ["base_layer.weight", "level0.weight"]),
        (nn.ModuleDict({"lora_model": nn.Linear(4, 4)}), [], ["lora_model.weight"]),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else "",
)
def test_adapters_are_told_from_the_layers_that_they_adapt(layer, adapters, weights):
    reasons = {name: why_unusual(*found) for name, found in find_parameters(layer).items()}
    assert [name for name, why in reasons.items() if why == "adapter"] == adapters
    assert list(prunable_weights(layer)) == weights

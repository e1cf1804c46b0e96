"""Quantization-aware training of torchao: pruned weights are zeros of the converted layers."""

import pytest
import torch
from torch import nn

from lightning_prune import MagnitudeCriterion
from tests.engine.quantization_aware import RULES, start, train


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(16, 32)
        self.up, self.out = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        return self.out(self.up(self.words(x)).relu())


def draw_words(generator):
    return torch.randint(16, (16,), generator=generator)


@pytest.mark.parametrize("criterion", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("has_int8_inputs", [False, True], ids=["weights", "weights and inputs"])
def test_zeros_of_torchao_training_are_zeros_of_the_converted_layers(criterion, has_int8_inputs):
    pytest.importorskip("torchao", reason="needs torchao")
    from torchao.quantization import (
        Int8DynamicActivationIntxWeightConfig,
        IntxWeightOnlyConfig,
        PerGroup,
        quantize_,
    )
    from torchao.quantization.qat import QATConfig

    kind = Int8DynamicActivationIntxWeightConfig if has_int8_inputs else IntxWeightOnlyConfig
    name = "weight_granularity" if has_int8_inputs else "granularity"
    config = kind(weight_dtype=torch.int4, **{name: PerGroup(32)})
    torch.manual_seed(0)
    model = Words()
    quantize_(model, QATConfig(config, step="prepare"))
    masks = train(model, *start(model, criterion), draw_words)
    quantize_(model, QATConfig(config, step="convert"))
    assert set(masks) == {"up.weight", "out.weight"}
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert (~mask).float().mean() == 0.75
        assert not weight.qdata[~mask].any()
        assert not weight.dequantize()[~mask].any()


@pytest.mark.slow
def test_zeros_of_a_graph_are_zeros_of_the_int8_weights_of_pt2e():
    pytest.importorskip("torchao", reason="needs torchao")
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e import quantize_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    torch.manual_seed(0)
    model = Words().train()
    exported = torch.export.export(model, (draw_words(None),)).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    graph = quantize_pt2e.prepare_qat_pt2e(exported, quantizer)
    pt2e.move_exported_model_to_train(graph)
    optimizer, pruner = start(graph, MagnitudeCriterion())
    assert pruner.dense["words.weight"] == "embedding"
    masks = train(graph, optimizer, pruner, draw_words)
    assert set(masks) == {"up.weight", "out.weight"}
    pt2e.move_exported_model_to_eval(graph)
    converted = quantize_pt2e.convert_pt2e(graph)
    found = [each for each in converted.buffers() if each.dtype == torch.int8]
    assert len(found) == len(masks)
    for mask in masks.values():
        (codes,) = (each for each in found if each.shape == mask.shape)
        assert not codes[~mask].any()
        assert (~mask).float().mean() == 0.75

"""Adapters of PEFT are merged into a sparse base, and every zero stays."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_prune.integrations.peft import merge_sparse

BASE = {"words.weight": 0.25, "mix.weight": 0.5, "up.weight": 0.75, "head.weight": 0.0}


class Net(nn.Module):
    """A layer of each kind that PEFT adapts, and a head that it leaves alone."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(8, 6)
        self.mix = nn.Conv2d(1, 4, 3, padding=1)
        self.up = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        images = self.words(x).unsqueeze(1)
        return self.head(self.up(self.mix(images).mean(1)).relu())


def prune(net):
    for name, sparsity in BASE.items():
        weight = net.get_parameter(name).data
        pruned = torch.arange(weight.numel()) < round(sparsity * weight.numel())
        weight.view(-1)[pruned[torch.randperm(weight.numel())]] = 0.0


def adapt(net, names=("default",), **config):
    """Return the net with trained adapters: the second matrices are not zero."""
    peft = need_peft()
    options = {"r": 2, "target_modules": ["words", "mix", "up"], **config}
    model = peft.get_peft_model(net, peft.LoraConfig(**options), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, peft.LoraConfig(**options))
    model.base_model.set_adapter(list(names))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "embedding_A" in name:
            parameter.data.normal_()
    return model


def need_peft():
    return pytest.importorskip("peft", reason="needs peft")


def make(seed=0):
    torch.manual_seed(seed)
    net = Net().eval()
    prune(net)
    return net


@pytest.mark.works_with("Other trainers", "PEFT: adapters are merged, and the zeros stay")
@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, ("default",)),
        ({"use_dora": True}, ("default",)),
        ({}, ("first", "second")),
        ({"lora_bias": True, "target_modules": ["up"]}, ("default",)),
    ],
    ids=["LoRA", "DoRA", "two adapters", "with bias"],
)
def test_the_merge_is_that_of_peft_where_the_base_is_not_zero(config, names):
    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model = adapt(net, names, **config)
    expected = copy.deepcopy(model).merge_and_unload().state_dict()
    merged = merge_sparse(model).model.state_dict()
    assert list(merged) == list(before)
    for name, value in merged.items():
        zeros = (before[name] == 0) & (value.ndim > 1)
        assert torch.equal(value, expected[name].masked_fill(zeros, 0.0)), name
        assert not value[zeros].signbit().any()


@pytest.mark.parametrize(
    ("method", "options"), [("LoHaConfig", {"r": 2}), ("OFTConfig", {"oft_block_size": 2})]
)
def test_every_method_that_peft_can_merge_keeps_the_zeros(method, options):
    net, peft = make(), need_peft()
    before = net.up.weight.clone()
    config = getattr(peft, method)(target_modules=["up"], init_weights=False, **options)
    (layer,) = merge_sparse(peft.get_peft_model(net, config)).layers
    assert torch.equal(net.up.weight == 0, before == 0)
    assert not torch.equal(net.up.weight, before)
    assert 0 < layer.dropped_norm < layer.update_norm


def test_the_report_counts_zeros_and_says_which_share_of_the_update_is_lost():
    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model = adapt(net)
    expected = copy.deepcopy(model).merge_and_unload().state_dict()
    report = merge_sparse(model)
    assert {each.name: each.zeros_before / each.size for each in report.layers} == {
        name: pytest.approx(sparsity, abs=0.02) for name, sparsity in BASE.items() if sparsity
    }
    assert all(layer.zeros == layer.zeros_before for layer in report.layers)
    dropped = whole = 0.0
    for layer in report.layers:
        update = (expected[layer.name] - before[layer.name]).double()
        lost = update[before[layer.name] == 0]
        assert layer.update_norm == pytest.approx(float(update.norm()))
        assert layer.dropped_norm == pytest.approx(float(lost.norm()))
        dropped, whole = dropped + float(lost.norm()) ** 2, whole + float(update.norm()) ** 2
    assert report.dropped_share == pytest.approx(math.sqrt(dropped / whole))
    assert report.sparsity == report.sparsity_before
    rows = report.table().to_csv().splitlines()
    assert rows[-1] == f"all,{report.sparsity:.4f},{report.sparsity:.4f},{report.dropped_share:.4f}"


def test_a_merged_model_computes_without_peft_and_has_no_adapter():
    model = merge_sparse(adapt(make())).model
    assert type(model) is Net
    assert [name for name, _ in model.named_parameters()] == list(Net().state_dict())
    assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 3)


def test_an_adapter_that_was_never_trained_changes_nothing():
    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    peft = need_peft()
    model = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["up"]))
    report = merge_sparse(model)
    assert report.dropped_share == 0.0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_attention_of_torch_keeps_the_zeros_of_both_projections():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight"):
        net.get_parameter(name).data[:, ::2] = 0
    merged = merge_sparse(adapt(net, target_modules=["self_attn"])).model
    for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight"):
        weight = merged.get_parameter(name)
        assert not weight[:, ::2].any()
        assert weight[:, 1::2].all()


@pytest.mark.works_with("Other trainers", "PEFT: packed weights of a quantized base", refused=True)
def test_packed_weights_are_refused_by_name_and_nothing_changes():
    net = make()
    model = adapt(net)
    up = model.get_submodule("base_model.model.up.base_layer")
    up.weight = nn.Parameter(torch.zeros(24, 1, dtype=torch.uint8), requires_grad=False)
    message = (
        r"floating-point numbers, got 'up' \(Linear, Tensor of torch.uint8\).*QLoRA.*without a "
        "quantization_config"
    )
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        merge_sparse(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_failed_merge_leaves_the_model_as_it_was():
    model = adapt(make())
    model.get_parameter("base_model.model.up.lora_B.default.weight").data[0, 0] = math.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="NaNs detected"):
        merge_sparse(model)
    after = model.state_dict()
    assert all(value.equal(before[name]) or "lora_B" in name for name, value in after.items())
    model.get_parameter("base_model.model.up.lora_B.default.weight").data[0, 0] = 0.0
    assert merge_sparse(model).sparsity > 0.3


def test_adapters_that_are_merged_already_are_refused():
    model = adapt(make())
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"not merged yet.*'words', 'mix', 'up'.*unmerge_adapter"):
        merge_sparse(model)


def test_a_weight_of_zeros_only_is_refused_by_name():
    net = make()
    net.up.weight.data.zero_()
    with pytest.raises(ValueError, match=r"not 0 in each merged layer, got none in 'up.weight'"):
        merge_sparse(adapt(net))


def test_a_model_without_adapters_in_layers_is_refused():
    model = adapt(make())
    model.unload()
    with pytest.raises(ValueError, match="need adapters inside layers, as those of LoRA, got none"):
        merge_sparse(model)


def test_a_model_without_peft_is_refused():
    need_peft()
    with pytest.raises(TypeError, match=r"need a model of PEFT, got model of type Net"):
        merge_sparse(make())

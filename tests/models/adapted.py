"""Small layers with adapters, built as the best-known libraries build them."""

import torch
from torch import nn


class LoraLinear(nn.Module):
    """Named and nested as in PEFT: a frozen base and two small matrices for each adapter."""

    def __init__(self, inputs=16, outputs=16, rank=2):
        super().__init__()
        self.base_layer = nn.Linear(inputs, outputs).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, outputs, bias=False)})
        self.lora_magnitude_vector = nn.ModuleDict()

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))

    def merge(self):
        """Add the adapter to the base, as ``merge_and_unload`` does."""
        delta = self.lora_B["default"].weight @ self.lora_A["default"].weight
        self.base_layer.weight.data += delta.detach()
        return self.base_layer


class LoraEmbedding(nn.Module):
    """The adapter of an embedding in PEFT holds parameters, not layers."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Embedding(5, 4).requires_grad_(False)
        self.lora_embedding_A = nn.ParameterDict({"default": nn.Parameter(torch.ones(2, 5))})
        self.lora_embedding_B = nn.ParameterDict({"default": nn.Parameter(torch.ones(4, 2))})


class DoraScale(nn.Module):
    """The magnitudes of DoRA are named ``weight`` in PEFT."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))


class DoraLinear(LoraLinear):
    """LoRA with magnitudes."""

    def __init__(self):
        super().__init__()
        self.lora_magnitude_vector["default"] = DoraScale()


class HadaLinear(nn.Module):
    """LoHa in PEFT."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(4, 4).requires_grad_(False)
        self.hada_w1_a = nn.ParameterDict({"weight": nn.Parameter(torch.ones(4, 2))})
        self.hada_w1_b = nn.ParameterDict({"weight": nn.Parameter(torch.ones(2, 4))})


class ShiraLinear(nn.Module):
    """Any other method of PEFT names the attributes that hold adapters."""

    adapter_layer_names = ("shira_weight",)

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(4, 4)
        self.shira_weight = nn.ModuleDict({"default": nn.Linear(4, 4)})


class LoraParameters(nn.Linear):
    """loralib subclasses the layer; LitGPT, too, holds parameters."""

    def __init__(self):
        super().__init__(4, 4)
        self.weight.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.ones(2, 4))
        self.lora_B = nn.Parameter(torch.ones(4, 2))


class LoraTune(nn.Module):
    """torchtune holds the frozen weight itself and two layers in lower case."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4), requires_grad=False)
        self.lora_a = nn.Linear(4, 2, bias=False)
        self.lora_b = nn.Linear(2, 4, bias=False)


class Stem(nn.Module):
    """A network without adapters has a ``base_layer`` too: DLA of timm."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Conv2d(3, 4, 3)
        self.level0 = nn.Conv2d(4, 4, 3)

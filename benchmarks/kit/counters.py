"""Multiply-adds of a model by two other counters: that of torch, and that of Torch-Pruning."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def count_by_torch(model: nn.Module, batch: Tensor) -> int:
    """Return half of the FLOPs that torch counts: it counts products, and nothing else.

    Attention runs as plain products of matrices, since torch has no formula for the kernel on CPU.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        copy.deepcopy(model).eval()(batch)
    return counter.get_total_flops() // 2


def count_by_torch_pruning(model: nn.Module, batch: Tensor) -> tuple[int, int]:
    """Return the multiply-adds of linear layers and convolutions, and the whole count.

    Torch-Pruning counts by hooks on layers. The whole count adds biases, normalizations, pooling
    and ReLU, entry by entry. It lacks the products of activations in a model's own attention. The
    first number is counted without biases.

    Args:
        model: The model.
        batch: A single sample: Torch-Pruning divides by the size of the batch.
    """
    from torch_pruning.utils import count_ops_and_params

    whole, _ = count_ops_and_params(model, batch)
    bare = copy.deepcopy(model)
    for layer in bare.modules():
        if isinstance(layer, _LAYERS):
            layer.bias = None
    _, _, of_layers, _ = count_ops_and_params(bare, batch, layer_wise=True)
    products = sum(count for layer, count in of_layers.items() if isinstance(layer, _LAYERS))
    return int(products), int(whole)

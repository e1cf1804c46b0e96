"""Costs of a model that is there, each by several counters."""

import importlib
import math
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightning_prune import Budget, BytesBudget, export_onnx, report, save_sparse

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Counts = dict[str, int]


def count_macs(model: nn.Module, example: Tensor, budget: Budget) -> Counts:
    """Return the multiply-adds by nonzero weights, by `report`, torch and Torch-Pruning.

    The other two do not see zeros. So the work of each layer counts times the fraction of the
    weights of the layer that are not zero.
    """
    dense, outside = _count_by_torch(model, example)
    counts = {"report": report(model, example, latency=False).total.effective_macs}
    counts["torch"] = outside + _skip_zeros(model, dense)
    other = import_torch_pruning()
    if other is not None:
        layers = dict(_count_by_torch_pruning(other, model, example))
        counts["Torch-Pruning"] = outside + _skip_zeros(model, layers)
    return counts


def count_parameters(model: nn.Module, example: Tensor, budget: Budget) -> Counts:
    """Return the parameters that are not zero, by `report` and by torch."""
    return {
        "report": report(model, example, latency=False).total.nonzeros,
        "torch": sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
    }


def count_bytes(model: nn.Module, example: Tensor, budget: BytesBudget) -> Counts:
    """Return the bytes of the file that a budget names: sparse or ONNX."""
    with tempfile.TemporaryDirectory() as folder:
        if budget.file == "sparse":
            file = Path(folder) / "model.safetensors"
            save_sparse(model, file)
        else:
            file = Path(folder) / "model.onnx"
            export_onnx(model, file, example=example)
        return {"disk": file.stat().st_size}


def import_torch_pruning() -> ModuleType | None:
    """Return Torch-Pruning, or None if it is not installed."""
    try:
        return importlib.import_module("torch_pruning")
    except ImportError:
        return None


def _count_by_torch(model: nn.Module, example: Tensor) -> tuple[dict[str, Fraction], int]:
    """Return the dense multiply-adds of each layer, and those outside of layers.

    The mathematical form of attention is asked for: the counter knows the products in it.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model.eval()(example)
    by_module = counter.get_flop_counts()
    layers = {}
    for name, _ in _find_layers(model):
        found = by_module.get(f"{type(model).__name__}.{name}", {})
        layers[name] = Fraction(sum(found.values()), 2)  # a multiply-add is two operations
    return layers, int(Fraction(counter.get_total_flops(), 2) - sum(layers.values()))


def _count_by_torch_pruning(
    library: ModuleType, model: nn.Module, example: Tensor
) -> Iterator[tuple[str, Fraction]]:
    """Yield the dense multiply-adds of each layer, without the additions of biases."""
    _, _, operations, _ = library.utils.count_ops_and_params(model, example, layer_wise=True)
    for name, layer in _find_layers(model):
        found = Fraction(operations[layer] or 0)
        if layer.bias is None:
            yield name, found
        elif isinstance(layer, nn.Linear):
            yield name, found - layer.out_features
        else:  # of each position
            products = layer.weight.numel()
            yield name, found * products / (products + layer.out_channels)


def _find_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LAYERS))


def _skip_zeros(model: nn.Module, dense: dict[str, Fraction]) -> int:
    """Return the multiply-adds of all layers without those by zero."""
    layers = dict(model.named_modules())
    total = Fraction(0)
    for name, macs in dense.items():
        weight = layers[name].weight
        total += macs * int(weight.count_nonzero()) / math.prod(weight.shape)
    return int(total)

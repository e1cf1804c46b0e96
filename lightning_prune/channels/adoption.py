"""Shrunk modules as states, and new modules that adopt such a state."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.channels.attention import slim_attention
from lightning_prune.channels.numbers import Setting, find_set_numbers, set_numbers
from lightning_prune.channels.removal import put_tensors
from lightning_prune.channels.torch_layers import fit_layer
from lightning_prune.models.names import named_tensors, plain_name


@check_arguments
def shrunk_state(module: nn.Module) -> dict[str, Any]:
    """Return the weights of a module with all that `adopt` needs to load them into a dense module.

    It holds tensors, numbers and strings, so that it loads with ``weights_only=True``. The numbers
    are those that `shrink` has changed in the code of the module, such as numbers of heads.
    """
    return {
        "state_dict": module.state_dict(),
        "shrunk_attributes": find_set_numbers(module),
    }


@check_arguments
def adopt(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a module the shapes and the weights of a shrunk one of the same class.

    Args:
        module: A new instance, as its constructor makes it.
        state: The result of `shrunk_state`.

    Raises:
        ValueError: If the weights are those of another architecture.
    """
    tensors = named_tensors(module)
    weights = {plain_name(name): tensor for name, tensor in state["state_dict"].items()}
    persistent = {plain_name(name) for name in module.state_dict()}
    if foreign := sorted(set(weights) ^ persistent):
        raise ValueError(
            "need the state of a module of the same class, got one that differs in "
            + ", ".join(f"'{name}'" for name in foreign[:6])
        )
    shapes = {
        name: tensors[name].new_empty(weight.shape)
        for name, weight in weights.items()
        if name in tensors and tensors[name].shape != weight.shape
    }
    put_tensors(module, shapes)
    slim_attention(module)
    for child in module.modules():
        fit_layer(child)
    settings = [
        Setting(name, attribute, value)
        for name, numbers in state["shrunk_attributes"].items()
        for attribute, value in numbers.items()
    ]
    set_numbers(module, settings)
    module.load_state_dict(
        {raw: weights[plain_name(raw)] for raw in module.state_dict()}, strict=True
    )

"""How masks are saved, and whether saved ones fit a model."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_prune.models.names import named_parameters


def refuse_foreign_masks(state: Mapping[str, Any], model: nn.Module) -> None:
    """Raise ValueError if masks of the state have no parameter in the model, or another shape."""
    parameters = named_parameters(model)
    differences = []
    for name, shape in state["shapes"].items():
        parameter = parameters.get(name)
        if parameter is None:
            differences.append(f"'{name}' is {shape} in the state and absent in the model")
        elif not is_lazy(parameter) and list(parameter.shape) != shape:
            found = list(parameter.shape)
            differences.append(f"'{name}' is {shape} in the state and {found} in the model")
    if differences:
        raise ValueError(f"need masks that fit the model, got {'; '.join(differences)}")

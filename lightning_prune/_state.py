"""How masks are saved, and whether saved ones fit a model."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def packed(mask: Tensor) -> Tensor:
    """Return a mask in one bit an entry, as uint8."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().ravel()))


def unpacked(bits: Tensor, shape: torch.Size) -> Tensor:
    """Return the mask of this shape from its bits."""
    entries = np.unpackbits(bits.cpu().numpy(), count=math.prod(shape))
    return torch.from_numpy(entries.astype(bool)).view(shape)


def refuse_foreign_masks(state: Mapping[str, Any], model: nn.Module) -> None:
    """Raise ValueError if masks of the state have no parameter in the model, or another shape."""
    shapes = {
        name.replace("_orig_mod.", ""): list(parameter.shape)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    differences = [
        f"'{name}' is {shape} in the state and {shapes.get(name, 'absent')} in the model"
        for name, shape in state["shapes"].items()
        if shapes.get(name) != shape
    ]
    if differences:
        raise ValueError(f"need masks that fit the model, got {'; '.join(differences)}")

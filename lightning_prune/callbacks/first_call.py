"""What a model's ``forward`` is called with, seen from beside."""

import inspect
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only


class FirstCall:
    """Keeps the arguments of the next call of a module, for the first samples of the batch.

    Args:
        module: Gets a hook, which takes itself away.
        samples: How many samples to keep.

    Attributes:
        example: A tuple or a dict, as an ``example_input_array``; None before the call.
    """

    def __init__(self, module: nn.Module, samples: int) -> None:
        self.example: Any = None
        self._samples = samples
        self._forward = module.forward
        self._hook = module.register_forward_pre_hook(self._keep, with_kwargs=True)

    def stop(self) -> None:
        """Take the hook away if it was never called."""
        self._hook.remove()

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.forward != self._forward:  # Lightning's own, which leads to validation_step
            return
        self.stop()
        call: Any = args
        if kwargs:
            call = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
        self.example = _first(call, self._samples)


def missing_example(model: LightningModule) -> str:
    """Return what to say where validation does not call ``forward``."""
    return (
        f"need an example of what forward takes, got none: validation_step does not call it; set "
        f"{type(model).__name__}.example_input_array"
    )


def _first(call: Any, samples: int) -> Any:
    """Return a copy with the first samples of every tensor that is as long as the first one."""
    tensors = [leaf for leaf in tree_leaves(call) if isinstance(leaf, Tensor) and leaf.ndim]
    length = len(tensors[0]) if tensors else 0

    def cut(tensor: Tensor) -> Tensor:
        whole = tensor.ndim == 0 or len(tensor) != length
        return (tensor if whole else tensor[:samples]).detach().clone()

    return tree_map_only(torch.Tensor, cut, call)

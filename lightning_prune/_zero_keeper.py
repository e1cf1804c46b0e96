"""How pruned weights stay at zero from step to step, with as few passes over them as may be."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune._distributed import local
from lightning_prune._optimizers import clear_pruned, leaves_zeros
from lightning_prune.groups import PrunedTensor


class ZeroKeeper:
    """Keeps the pruned weights that one optimizer trains at zero.

    Gradients are masked before each step, so that clipping and statistics do not see them. Weights
    are masked after it, unless the step cannot have moved them: their optimizer treats each entry
    alone, has gathered nothing of them, and no one has written into weights or gradients since they
    were masked. Torch counts what writes into a tensor, but not through its ``data``.

    Args:
        optimizer: The optimizer.
        tensors: What it trains; some may belong to another optimizer, too.
        index: Its own index.
    """

    def __init__(self, optimizer: Optimizer, tensors: Sequence[PrunedTensor], index: int) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._tensors = [tensor for tensor in tensors if id(tensor.parameter) in held]
        self._index = index
        self._optimizer = optimizer
        self._is_clear = False  # whether the statistics of pruned weights are 0
        self._written: dict[PrunedTensor, int] = {}  # versions of the weights after the last step
        self._resting: dict[PrunedTensor, tuple[Tensor | None, int]] = {}
        self._hook = optimizer.register_load_state_dict_post_hook(self._distrust)

    def remove(self) -> None:
        """Take the hook away."""
        self._hook.remove()

    def clear(self) -> None:
        """Zero what the optimizer may have gathered of pruned weights elsewhere."""
        if not self._is_clear:
            for tensor in self._pruned():
                clear_pruned(self._optimizer, tensor.parameter, tensor.masking)
            self._is_clear = True

    def before_step(self) -> None:
        """Mask the gradients."""
        may_rest = leaves_zeros(self._optimizer)
        for tensor in self._pruned():
            gradient = tensor.parameter.grad
            if gradient is None or gradient.layout == torch.strided:
                if gradient is not None:
                    tensor.masking.apply(local(gradient))
                if may_rest:
                    self._note(tensor, gradient)

    def after_step(self) -> None:
        """Mask the weights where that is needed."""
        for tensor in self._pruned():
            if not self._rests(tensor):
                tensor.masking.apply(tensor.weights)
            if tensor.shard is None:
                self._written[tensor] = tensor.parameter._version
        self._resting = {}  # or the gradients would outlive the step

    def _pruned(self) -> Iterator[PrunedTensor]:
        """Yield the tensors of which something is pruned by now."""
        return (tensor for tensor in self._tensors if tensor.kept < tensor.total)

    def _note(self, tensor: PrunedTensor, gradient: Tensor | None) -> None:
        """Note what must be found again after the step, if this may leave pruned weights alone."""
        owned = tensor.optimizer == self._index and tensor.shard is None
        if owned and self._written.get(tensor) == tensor.parameter._version:
            self._resting[tensor] = gradient, 0 if gradient is None else gradient._version

    def _rests(self, tensor: PrunedTensor) -> bool:
        if tensor not in self._resting:
            return False
        gradient, version = self._resting[tensor]
        if gradient is not tensor.parameter.grad:
            return False
        return gradient is None or gradient._version == version

    def _distrust(self, optimizer: Optimizer) -> None:
        self._is_clear = False

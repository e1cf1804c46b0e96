"""A parameter under pruning."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_prune.tensors.masks import Mask
from lightning_prune.tensors.shards import Shard, local_part, sum_shards


@dataclass(kw_only=True, eq=False)
class PrunedTensor:
    """A parameter under pruning.

    Args:
        name: Its qualified name.
        parameter: The parameter itself, never replaced.
        owner: The module where the parameter hangs, under its first name.
        sparsity: Final fraction of zeros, in [0, 1].
        glob: The glob that decided so.
        optimizer: Index of the optimizer that owns the parameter.
        output_axis: The axis of the output channels, 0 or 1.
        mask: Which weights are kept, of the local part.
        shard: Which part of a sharded parameter is local; None if all of it is.
        is_scored: Whether the criterion sees and scores it. If not, the tensor only shares the fate
            of others, such as the bias of a channel.
        state: The tensors that the criterion has gathered.
        seen: The tensors that the criterion's hooks have gathered here since the last step.
        hooks: These hooks.
        step: Completed steps of the owner.

    Attributes:
        kept: Number of weights of the whole tensor that are not pruned, counted from the mask.
        changes: Number of changes of the mask, in the whole tensor.
    """

    name: str
    parameter: nn.Parameter
    owner: nn.Module
    sparsity: float
    glob: str
    optimizer: int
    output_axis: int
    mask: Mask
    shard: Shard | None = None
    is_scored: bool = True
    state: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)
    hooks: Sequence[RemovableHandle] = ()
    step: int = 0
    kept: int = field(init=False)
    changes: int = 0

    def __post_init__(self) -> None:
        self.count_kept()

    def count_kept(self) -> None:
        """Count the kept weights of the whole tensor from the mask."""
        self.kept = int(sum_shards(self.mask.count(), self.shard))

    def remove_hooks(self) -> None:
        """Take the criterion's hooks away."""
        for hook in self.hooks:
            hook.remove()
        self.hooks, self.seen = (), {}

    def forget_seen(self) -> None:
        """Set to zero the tensors that hooks have gathered since the last step."""
        for value in self.seen.values():
            value.zero_()

    def prune_to(self, kept: Tensor) -> None:
        """Prune the weights that are false in a bool mask, which may broadcast."""
        before = self.kept
        self.mask.intersect(kept)
        self.count_kept()
        self.changes += before - self.kept

    def regrow_to(self, kept: Tensor) -> None:
        """Take over a bool mask; pruned weights that it keeps grow from 0."""
        self.mask.apply(self.weights)
        self.changes += int(sum_shards((self.mask.kept ^ kept).sum(), self.shard))
        self.mask.set(kept)
        self.count_kept()

    @property
    def weights(self) -> Tensor:
        """The local part of the parameter, without gradient; writing into it prunes the model."""
        return local_part(self.parameter)

    @property
    def gradient(self) -> Tensor:
        """The local part of the gradient.

        Raises:
            ValueError: If there is none.
        """
        if self.parameter.grad is None:
            raise ValueError(
                f"need a gradient, got none for '{self.name}' at step {self.step}: the loss does "
                f"not depend on it; to leave it dense, write sparsity={{'{self.name}': null}}"
            )
        gradient = local_part(self.parameter.grad)
        return gradient if gradient.layout == torch.strided else gradient.to_dense()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor as ``(output, input, ...)``."""
        shape = list(self.parameter.shape)
        shape[0], shape[self.output_axis] = shape[self.output_axis], shape[0]
        return tuple(shape)

    @property
    def total(self) -> int:
        """Number of weights of the whole tensor, pruned ones included."""
        return self.parameter.numel()

    def indices(self) -> Tensor:
        """Return the row-major index in the whole tensor of each local weight."""
        if self.shard is not None:
            return self.shard.find_indices()
        return torch.arange(self.total, device=self.mask.device).view(self.mask.shape)

    def output_first(self, tensor: Tensor) -> Tensor:
        """Return a view with the output axis first; the same call undoes it."""
        return tensor.transpose(0, self.output_axis)

"""A parameter under pruning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_prune.tensors.masks import Mask
from lightning_prune.tensors.shards import Shard, local, total


@dataclass(kw_only=True, eq=False)
class PrunedTensor:
    """A parameter under pruning.

    Args:
        name: Its qualified name.
        parameter: The parameter itself, never replaced.
        owner: The module where it hangs, under its first name.
        sparsity: Its final fraction of zeros, in [0, 1].
        glob: The glob that decided so.
        optimizer: Index of the optimizer that owns it.
        output_axis: The axis of its output channels, 0 or 1.
        masking: Which entries are kept, of the part that is here.
        state: What the criterion has gathered.
        seen: What its hooks have gathered here since the last step, before `state` takes it up.
        hooks: These hooks.
        step: Completed steps of the owner.
        shard: Which part of a sharded parameter is here; None if all of it is.
        follows: Whether it only goes with others, such as the bias of a channel: the criterion
            neither sees nor scores it.

    Attributes:
        kept: Number of entries of the whole tensor that are not pruned.
        changes: Number of changes of mask entries, of the whole tensor.
    """

    name: str
    parameter: nn.Parameter
    owner: nn.Module
    sparsity: float
    glob: str
    optimizer: int
    output_axis: int
    masking: Mask
    state: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)
    hooks: Sequence[RemovableHandle] = ()
    step: int = 0
    shard: Shard | None = None
    follows: bool = False
    kept: int = field(init=False)
    changes: int = 0

    def __post_init__(self) -> None:
        self.kept = int(total(self.masking.count(), self.shard))

    @property
    def mask(self) -> Tensor:
        """Which entries are kept: a new bool tensor, shaped as the part that is here."""
        return self.masking.kept

    def unwatch(self) -> None:
        """Take the criterion's hooks away."""
        for hook in self.hooks:
            hook.remove()
        self.hooks, self.seen = (), {}

    def forget_seen(self) -> None:
        """Forget what hooks have gathered since the last step."""
        for value in self.seen.values():
            value.zero_()

    def prune_to(self, mask: Tensor) -> None:
        """Keep only what is kept already and in ``mask``."""
        before = self.kept
        self.masking.intersect(mask)
        self.kept = int(total(self.masking.count(), self.shard))
        self.changes += before - self.kept

    def regrow_to(self, mask: Tensor) -> None:
        """Keep what is in ``mask``; what was pruned before grows from 0."""
        self.masking.apply(self.weights)
        self.changes += int(total((self.mask ^ mask).sum(), self.shard))
        self.masking.set(mask)
        self.kept = int(total(self.masking.count(), self.shard))

    @property
    def weights(self) -> Tensor:
        """What is here of the parameter, without gradient; writing into it prunes the model."""
        return local(self.parameter)

    @property
    def gradient(self) -> Tensor:
        """What is here of the gradient.

        Raises:
            ValueError: If there is none.
        """
        if self.parameter.grad is None:
            raise ValueError(
                f"need a gradient, got none for '{self.name}' at step {self.step}: it had no part "
                f"in the loss; to leave it dense, write sparsity={{'{self.name}': null}}"
            )
        gradient = local(self.parameter.grad)
        return gradient if gradient.layout == torch.strided else gradient.to_dense()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor as ``(output, input, ...)``."""
        shape = list(self.parameter.shape)
        shape[0], shape[self.output_axis] = shape[self.output_axis], shape[0]
        return tuple(shape)

    @property
    def total(self) -> int:
        """Number of entries of the whole tensor, pruned ones included."""
        return self.parameter.numel()

    def indices(self) -> Tensor:
        """Return the row-major index in the whole tensor of each entry that is here."""
        if self.shard is not None:
            return self.shard.indices()
        return torch.arange(self.total, device=self.masking.device).view(self.masking.shape)

    def output_first(self, tensor: Tensor) -> Tensor:
        """Return a view with the output axis first; the same call undoes it."""
        return tensor.transpose(0, self.output_axis)


Score = Callable[[PrunedTensor, dict[str, Tensor]], Tensor]
"""A criterion's ``score``."""

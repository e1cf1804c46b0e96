"""Blocks: weights of a matrix that are kept or pruned together."""

import math
from dataclasses import dataclass

from torch import Tensor

from lightning_prune.recipe.patterns import Pattern
from lightning_prune.tensors.ranking import choose_best
from lightning_prune.tensors.shards import Shard


@dataclass(frozen=True, kw_only=True)
class BlockPattern(Pattern):
    """Whole blocks of the matrix ``(output, flattened input)``.

    Block-sparse kernels run blocks of, for example, (4, 1) or (16, 16): Gray et al., "GPU Kernels
    for Block-Sparse Weights" (2017), https://openai.com/index/block-sparse-gpu-kernels/.

    Args:
        shape: Height and width of a block, in outputs and flattened inputs.

    Raises:
        ValueError: If a side is less than 1.

    Examples:
        >>> import torch
        >>> pattern = BlockPattern(shape=(1, 2))
        >>> atoms = pattern.to_atoms(torch.tensor([[1.0, 3.0, 0.0, 1.0]]))
        >>> atoms.tolist(), pattern.to_entries(pattern(atoms, keep=1), (1, 4)).tolist()
        ([[2.0, 0.5]], [[True, True, False, False]])
    """

    shape: tuple[int, int] = (4, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.shape) < 1:
            raise ValueError(f"need both sides of a block >= 1, got shape={self.shape}")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if the blocks do not divide the matrix."""
        height, width = shape[0], math.prod(shape[1:])
        if height % self.shape[0] or width % self.shape[1]:
            raise ValueError(
                f"need a (output, flattened input) matrix that divides into blocks of "
                f"{self.shape}, got {(height, width)}"
            )

    def keeps_slices(self, axis: int) -> bool:
        """Whether each index of an axis can keep a weight: outputs, which blocks span whole."""
        return axis == 0

    @property
    def works_on_shards(self) -> bool:
        """Whether a mask made from shards equals that of the whole tensor: if no block is cut."""
        return True

    def find_atoms(self, shard: Shard) -> Shard:
        """Return the place of the local blocks; raise ValueError if shards cut a block."""
        matrix = shard.flatten()
        if any(matrix.is_cut(axis, length) for axis, length in enumerate(self.shape)):
            raise ValueError(
                f"need blocks that shards leave whole for {self}, got parts that begin at "
                f"{matrix.starts} of (output, flattened input)"
            )
        return matrix.group(0, self.shape[0]).group(1, self.shape[1])

    def to_atoms(self, entries: Tensor) -> Tensor:
        """Return the mean score of each block, ``(output blocks, input blocks)``."""
        height, width = self.shape
        rows, columns = len(entries) // height, math.prod(entries.shape[1:]) // width
        return entries.reshape(rows, height, columns, width).mean(dim=(1, 3))

    def to_entries(self, atoms: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the mask of the tensor: all weights of a block are kept or pruned together."""
        rows = atoms.repeat_interleave(self.shape[0], dim=0)
        return rows.repeat_interleave(self.shape[1], dim=1).view(shape)

    def __call__(self, scores: Tensor, keep: int) -> Tensor:
        """Return a bool mask of the blocks that keeps exactly ``keep``."""
        return choose_best(scores, keep)

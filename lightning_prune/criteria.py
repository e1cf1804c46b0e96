"""Which: a score for every weight; the higher ones are kept."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_prune.groups import PrunedTensor

State = dict[str, Tensor]


class Criterion(ABC):
    """The answer to *which?*.

    A subclass is a frozen dataclass with a default for every field. What it gathers over the steps
    lives in ``state``, one dict of tensors for each pruned tensor, which the engine keeps, saves
    and restores. To write one, define `score`; `observe` only if it needs what happens in between.

    Attributes:
        signed: Whether scores can be negative.
    """

    signed: ClassVar[bool] = False

    def observe(self, tensor: PrunedTensor, state: State) -> State:
        """Return the new state; called before each optimizer step, with the gradients there.

        Args:
            tensor: The tensor, with ``tensor.parameter`` and its ``grad``.
            state: What the last call returned; empty at first.
        """
        return state

    @abstractmethod
    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return one finite score a weight, shaped as ``tensor.parameter``; higher is kept."""


@dataclass(frozen=True, kw_only=True)
class MagnitudeCriterion(Criterion):
    r"""Keep the largest weights: :math:`|w|`.

    Han et al., "Learning both Weights and Connections" (2015), https://arxiv.org/abs/1506.02626.
    """

    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return :math:`|w|`."""
        return tensor.parameter.detach().abs()


@dataclass(frozen=True, kw_only=True)
class RandomCriterion(Criterion):
    """Keep weights at random: the baseline that a criterion must beat.

    Scores are uniform in [0, 1) and a function of seed, step, name and index alone: the same on
    every rank and after a resume, without touching a global generator.

    Args:
        seed: Any whole number.
    """

    seed: int = 0

    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return uniform numbers that depend on seed, step, name and index only."""
        key = hashlib.sha256(f"{self.seed} {tensor.step} {tensor.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
        shape, device = tensor.parameter.shape, tensor.parameter.device
        return torch.rand(shape, generator=generator, dtype=torch.float32).to(device)

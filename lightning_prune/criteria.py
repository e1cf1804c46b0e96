"""Which: a score for every weight; the higher ones are kept."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

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
        forgets: Whether what it has gathered is forgotten at each update of the masks.
        works_on_shards: Whether, for a sharded parameter (a DTensor, as its ``grad`` is), the score
            of what is here is that part of the whole score. Nothing may have been gathered then.
    """

    signed: ClassVar[bool] = False
    forgets: ClassVar[bool] = False
    works_on_shards: ClassVar[bool] = False

    def observe(self, tensor: PrunedTensor, state: State) -> State:
        """Return the new state; called before each optimizer step, with the gradients there.

        Args:
            tensor: The tensor, with ``tensor.parameter`` and its ``grad``.
            state: What the last call returned; empty at first.
        """
        return state

    @abstractmethod
    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return one finite score a weight, shaped as ``tensor.weights``; higher is kept."""


@dataclass(frozen=True, kw_only=True)
class MagnitudeCriterion(Criterion):
    r"""Keep the largest weights: :math:`|w|`.

    Han et al., "Learning both Weights and Connections" (2015), https://arxiv.org/abs/1506.02626.
    """

    works_on_shards: ClassVar[bool] = True

    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return :math:`|w|`."""
        return tensor.weights.abs()


@dataclass(frozen=True, kw_only=True)
class GradientCriterion(Criterion):
    r"""Keep what the loss depends on most: :math:`|\partial L / \partial w|` of the present step.

    What RigL grows by: Evci et al., "Rigging the Lottery" (2020), https://arxiv.org/abs/1911.11134.
    """

    works_on_shards: ClassVar[bool] = True

    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return the magnitude of the gradient."""
        return tensor.gradient.abs()


@dataclass(frozen=True, kw_only=True)
class RandomCriterion(Criterion):
    """Keep weights at random: the baseline that a criterion must beat.

    Scores are uniform in [0, 1) and a function of seed, step, name and index alone: the same on
    every rank and after a resume, without touching a global generator. They are hashes of the index
    by SplitMix64: Steele et al., "Fast Splittable Pseudorandom Number Generators" (2014),
    https://doi.org/10.1145/2714064.2660195.

    Args:
        seed: Any whole number.
    """

    works_on_shards: ClassVar[bool] = True
    seed: int = 0

    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return uniform numbers that depend on seed, step, name and index only."""
        key = hashlib.sha256(f"{self.seed} {tensor.step} {tensor.name}".encode()).digest()
        start = int.from_bytes(key[:8], "little", signed=True)
        return (_split_mix(tensor.indices(), start) >> 40 & 0xFFFFFF).float() * 2.0**-24


def _split_mix(index: Tensor, start: int) -> Tensor:
    """Return 64 random bits for each index; products wrap around."""
    bits = (index + 1) * _signed(0x9E3779B97F4A7C15) + start
    bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros, which torch's ``>>`` does not."""
    return bits >> by & ((1 << (64 - by)) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 64)

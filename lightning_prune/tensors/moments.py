"""Sums over the inputs of a layer, from which the error of its outputs follows for any weights."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(kw_only=True)
class Moments:
    """Sums over the inputs x of a layer, and the inputs d of the same layer in the dense model.

    The sums are in double precision. Products within a batch are in the precision of the inputs.

    Args:
        products: The sums of :math:`x x^T`, ``(groups, columns, columns)``.
        crossed: The sums of :math:`d x^T`.
        sums: The sums of :math:`x`, ``(groups, columns)``.
        dense_sums: The sums of :math:`d`.
        count: Number of inputs.
    """

    products: Tensor
    crossed: Tensor
    sums: Tensor
    dense_sums: Tensor
    count: int = 0

    @classmethod
    def empty(cls, groups: int, columns: int, device: torch.device) -> "Moments":
        """Return zeros."""
        products = torch.zeros(groups, columns, columns, dtype=torch.float64, device=device)
        sums = torch.zeros(groups, columns, dtype=torch.float64, device=device)
        return cls(products=products, crossed=products.clone(), sums=sums, dense_sums=sums.clone())

    def add(self, inputs: Tensor, dense: Tensor) -> None:
        """Add inputs.

        Args:
            inputs: ``(groups, samples, columns)``.
            dense: The inputs in the dense model, in the same order.
        """
        self.products += inputs.mT @ inputs
        self.crossed += dense.mT @ inputs
        self.sums += inputs.sum(1)
        self.dense_sums += dense.sum(1)
        self.count += inputs.shape[1]

    def center(self) -> "Moments":
        """Return the sums over inputs less their means: a bias makes up for the means."""
        means = self.sums / max(self.count, 1)
        return replace(
            self,
            products=self.products - self.sums[:, :, None] * means[:, None, :],
            crossed=self.crossed - self.dense_sums[:, :, None] * means[:, None, :],
        )

    def find_shift(self, dense: Tensor, weights: Tensor) -> Tensor:
        """Return how much the mean of the outputs has sunk, which the bias makes up for.

        Args:
            dense: The dense weights, ``(groups, rows, columns)``.
            weights: The repaired weights.
        """
        before = dense @ self.dense_sums[:, :, None]
        return (before - weights @ self.sums[:, :, None]).squeeze(2) / max(self.count, 1)

r"""Surgery on a linear map: the weights that are left make up for those that went.

A layer turns inputs :math:`x` into :math:`W x`. Pruned weights :math:`\hat W` should give the same
outputs on the inputs that the layer will see. With the sums :math:`H = \sum x x^T` the error is

.. math:: \sum \lVert A x - \hat W x \rVert^2 = \operatorname{tr}\, (A - \hat W) H (A - \hat W)^T

where the aim :math:`A` has the least error of all dense weights. All tensors here are batched over
the groups of a convolution, and hold double precision: ``(groups, rows, columns)``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Choose = Callable[[Tensor], Tensor]
"""Turns scores of at least 0, ``(groups, rows, columns)``, into a bool mask."""

_PENALTIES = -1.0, 0.5, 7  # from 0.1 to about 3, in 7 steps
_TRIES = 3  # for each penalty


@dataclass(frozen=True, kw_only=True)
class Surgery:
    """The error of a layer's outputs as a function of the weights.

    Args:
        aim: The dense weights with the least error, ``(groups, rows, columns)``.
        hessian: The damped sums of products of inputs, ``(groups, columns, columns)``.
    """

    aim: Tensor
    hessian: Tensor

    @classmethod
    def of(cls, weights: Tensor, products: Tensor, crossed: Tensor, damping: float) -> "Surgery":
        r"""Return the surgery that keeps the outputs :math:`W d` of dense inputs d.

        .. math:: A = W (C + \lambda I)(H + \lambda I)^{-1}, \quad C = \sum d x^T

        Args:
            weights: The dense weights :math:`W`.
            products: The sums :math:`H` over the inputs after pruning.
            crossed: The sums :math:`C` over dense inputs and inputs after pruning.
            damping: The part of the mean of the diagonal of :math:`H` that is :math:`\lambda`.
        """
        means = products.diagonal(dim1=1, dim2=2).mean(1)
        added = torch.where(means > 0, damping * means, 1.0)
        hessian = _add_to_diagonal(products, added)
        wanted = weights @ _add_to_diagonal(crossed, added)
        aim = torch.cholesky_solve(wanted.mT, torch.linalg.cholesky(hessian)).mT
        return cls(aim=aim, hessian=hessian)

    def measure_error(self, weights: Tensor) -> float:
        """Return the squared error of weights, over the squared outputs of the aim."""
        lost = self.aim - weights
        whole = float(((self.aim @ self.hessian) * self.aim).sum())
        return float(((lost @ self.hessian) * lost).sum()) / whole if whole > 0 else 0.0

    def choose(self, choose: Choose) -> tuple[Tensor, Tensor]:
        r"""Search weights and their mask together, by alternating directions of multipliers.

        Free weights :math:`X` and pruned weights :math:`D` come together as a penalty :math:`\rho`
        grows. In turn,

        .. math:: X = (A H - V + \rho D)(H + \rho I)^{-1}, \quad
            D = \operatorname{prune}(X + V / \rho), \quad V \mathrel{+}= \rho (X - D)

        with inputs scaled to a diagonal of 1: Meng et al., "ALPS: Improved Optimization for Highly
        Sparse One-Shot Pruning for Large Language Models" (2024),
        https://arxiv.org/abs/2406.07831. The search is in single precision.

        Args:
            choose: Chooses a mask for scores; it keeps the same number each time.

        Returns:
            Pruned weights to `refit`, and the bool mask.
        """
        scale = self.hessian.diagonal(dim1=1, dim2=2).rsqrt()
        hessian = (self.hessian * scale[:, :, None] * scale[:, None, :]).float()
        pruned = (self.aim / scale[:, None, :]).float()
        wanted, multipliers = pruned @ hessian, torch.zeros_like(pruned)
        mask = torch.ones_like(pruned, dtype=torch.bool)
        for penalty in torch.logspace(*_PENALTIES, device="cpu").tolist():
            penalties = torch.full_like(hessian[:, 0, 0], penalty)
            inverse = _invert(_add_to_diagonal(hessian, penalties))
            for _ in range(_TRIES):
                free = (wanted - multipliers + penalty * pruned) @ inverse
                shifted = free + multipliers / penalty
                mask = choose(shifted.square())
                pruned = shifted * mask  # faster than to fill
                multipliers += penalty * (free - pruned)
        return pruned.double() * scale[:, None, :], mask

    def refit(self, weights: Tensor, mask: Tensor, rounds: int) -> Tensor:
        """Return the kept weights with the least error, by conjugate gradients.

        Args:
            weights: Where to begin.
            mask: Bool mask of the kept weights; True keeps.
            rounds: Number of steps. As many steps as columns give the exact solution, but for
                rounding; a few take away most of the error.
        """
        scale = self.hessian.diagonal(dim1=1, dim2=2)[:, None, :]
        weights = weights.masked_fill(~mask, 0.0)
        left = ((self.aim - weights) @ self.hessian).mul_(mask)
        step = left / scale
        power = (left * step).sum(2, keepdim=True)
        for _ in range(rounds):
            turned = (step @ self.hessian).mul_(mask)
            length = _divide(power, (step * turned).sum(2, keepdim=True))
            weights += length * step
            left -= length * turned
            scaled = left / scale
            before, power = power, (left * scaled).sum(2, keepdim=True)
            step = scaled + _divide(power, before) * step
        return weights


def _add_to_diagonal(matrices: Tensor, added: Tensor) -> Tensor:
    """Return matrices with a number for each of them added to the diagonal."""
    changed = matrices.clone()
    changed.diagonal(dim1=1, dim2=2).add_(added[:, None])
    return changed


def _invert(matrices: Tensor) -> Tensor:
    """Return the inverses of symmetric positive definite matrices."""
    inverses: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(matrices))
    return inverses


def _divide(above: Tensor, below: Tensor) -> Tensor:
    """Return a quotient; 0 where a row has nothing left to change."""
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(below.dtype).tiny), 0.0)

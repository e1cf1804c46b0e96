r"""Optimal brain surgery on a linear map: what is left makes up for what went.

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
"""Turns scores, ``(groups, rows, columns)``, into a bool mask; it keeps +inf and not -inf."""


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

    def choose(self, choose: Choose, block: int) -> tuple[Tensor, Tensor]:
        r"""Choose weights to prune and repair the others, one block of columns after the other.

        A pruned weight :math:`w_j` changes the weights of later columns by
        :math:`-w_j U_{j,\cdot} / U_{jj}`, where :math:`U^T U = H^{-1}` and U is upper triangular.
        The score of a weight is :math:`w_j^2 / U_{jj}^2`, the error that it costs: Frantar &
        Alistarh, "SparseGPT" (2023), https://arxiv.org/abs/2301.00774. Before each block the mask
        of all columns is chosen anew, with +inf and -inf where earlier blocks are decided. So
        blocks share the number to keep by what their weights cost.

        Args:
            choose: Chooses a mask for scores; it keeps the same number each time.
            block: Number of columns in a block.

        Returns:
            The repaired weights, and the bool mask.
        """
        factor = _factor_inverse(self.hessian)
        costs = factor.diagonal(dim1=1, dim2=2)[:, None, :].square()
        weights = self.aim.clone()
        mask = torch.ones_like(weights, dtype=torch.bool)
        for begin in range(0, weights.shape[2], block):
            columns = slice(begin, min(begin + block, weights.shape[2]))
            scores = weights.square() / costs
            scores[..., :begin] = torch.where(mask[..., :begin], torch.inf, -torch.inf)
            mask[..., columns] = choose(scores)[..., columns]
            _prune_block(weights, factor, mask, columns)
        return weights, mask

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
        left = ((self.aim - weights) @ self.hessian).masked_fill_(~mask, 0.0)
        step = left / scale
        power = (left * step).sum(2, keepdim=True)
        for _ in range(rounds):
            turned = (step @ self.hessian).masked_fill_(~mask, 0.0)
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


def _factor_inverse(hessian: Tensor) -> Tensor:
    """Return the upper triangular factor U of the inverse, which is the product of U^T and U."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _prune_block(weights: Tensor, factor: Tensor, mask: Tensor, columns: slice) -> None:
    """Prune the columns of a block in turn, and repair all later columns, in place."""
    begin, end = columns.start, columns.stop
    inside, lost = weights[..., columns], torch.empty_like(weights[..., columns])
    rows = factor[:, columns]
    for column in range(end - begin):
        pruned = inside[..., column].masked_fill(mask[..., begin + column], 0.0)
        lost[..., column] = pruned / rows[:, column, begin + column, None]
        inside[..., column:] -= (
            lost[..., column, None] * rows[:, None, column, begin + column : end]
        )
    weights[..., end:] -= lost @ rows[..., end:]
    inside.masked_fill_(~mask[..., columns], 0.0)


def _divide(above: Tensor, below: Tensor) -> Tensor:
    """Return a quotient; 0 where a row has nothing left to change."""
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(below.dtype).tiny), 0.0)

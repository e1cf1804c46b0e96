"""The repair of layers: masks and weights that keep the outputs of the dense layers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lightning_prune.engine.groups import Group
from lightning_prune.recipe.layer_inputs import find_hidden_inputs, list_factors
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.recipe.repair import Repair
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.moments import Moments
from lightning_prune.tensors.surgeon import Surgery


class DenseTwin:
    """The values that parameters had before they were pruned, and the masks.

    Args:
        tensors: All tensors under pruning, before the update.
    """

    def __init__(self, tensors: Sequence[PrunedTensor]) -> None:
        self._masks = {tensor.name: tensor.mask.kept for tensor in tensors}
        self._values = {
            parameter: parameter.detach().clone()
            for tensor in tensors
            for parameter in (tensor.parameter, getattr(tensor.owner, "bias", None))
            if isinstance(parameter, nn.Parameter)
        }

    def read(self, parameter: nn.Parameter) -> Tensor:
        """Return the values of a parameter."""
        return self._values[parameter].to(parameter.device)

    def read_mask(self, tensor: PrunedTensor) -> Tensor:
        """Return the mask of a tensor."""
        return self._masks[tensor.name].to(tensor.mask.device)

    def restore(self) -> None:
        """Give all parameters the values back."""
        for parameter, value in self._values.items():
            parameter.data.copy_(value)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the dense model inside the block."""
        self._values = {p: value.to(p.device) for p, value in self._values.items()}
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        """Exchange the values with those of the parameters, without a copy."""
        for parameter, value in self._values.items():
            self._values[parameter], parameter.data = parameter.data, value


@dataclass(frozen=True, kw_only=True)
class RepairedLayer:
    """How well a layer keeps the outputs of the dense layer, on the inputs that it sees.

    Args:
        name: Name of the weight.
        masked: The squared error of the pruned layer without repair, over the squared outputs.
        repaired: The same after the repair.
    """

    name: str
    masked: float
    repaired: float


class LayerRepair:
    """The repair of a layer.

    Args:
        tensor: The weight, which is pruned to the number of weights that the layer keeps.
        twin: The values before.
        group: Chooses the mask anew, with the same number of atoms; None to keep the mask.
        bias: The bias; None to leave it as it is.
        bias_mask: The kept entries of the bias; None for all.
    """

    def __init__(
        self,
        tensor: PrunedTensor,
        twin: DenseTwin,
        group: Group | None,
        bias: nn.Parameter | None,
        bias_mask: Tensor | None,
    ) -> None:
        self.tensor, self._twin, self._group = tensor, twin, group
        self._keep = 0 if group is None else group.atoms_kept
        self._bias, self._bias_mask = bias, bias_mask

    @property
    def name(self) -> str:
        """The name of the weight."""
        return self.tensor.name

    @property
    def has_kernel(self) -> bool:
        """Whether the weight has more axes than outputs and inputs."""
        return len(self.tensor.shape) > 2

    @torch.no_grad()
    def begin(self) -> None:
        """Give the layer the dense weights, on which no earlier layer depends."""
        self.tensor.follow_parameter()
        self.tensor.weights.copy_(self._twin.read(self.tensor.parameter))
        if self._bias is not None:
            self._bias.copy_(self._twin.read(self._bias))

    @torch.no_grad()
    def give_up(self) -> None:
        """Only mask the layer."""
        self.tensor.mask.apply(self.tensor.weights)
        if self._bias is not None and self._bias_mask is not None:
            self._bias.masked_fill_(~self._bias_mask.to(self._bias.device), 0.0)

    def make_moments(self) -> Moments:
        """Return empty sums for the inputs of the layer."""
        groups, _, columns = self._to_matrix(self.tensor.weights).shape
        return Moments.empty(groups, columns, self.tensor.weights.device)

    def add(self, moments: Moments, inputs: Tensor, dense: Tensor) -> None:
        """Add the inputs of a call, and the inputs of the same call in the dense model."""
        pieces = list_factors(self.tensor, inputs), list_factors(self.tensor, dense)
        for piece, dense_piece in zip(*pieces, strict=True):
            moments.add(piece, dense_piece)

    @torch.no_grad()
    def operate(self, moments: Moments, repair: Repair) -> RepairedLayer:
        """Choose the mask, if it is not given, and write the repaired weights.

        Args:
            moments: The sums over the inputs of the layer.
            repair: The options.
        """
        dense = self._to_matrix(self._twin.read(self.tensor.parameter)).double()
        seen = moments if self._bias is None else moments.center()
        surgery = Surgery.of(dense, seen.products, seen.crossed, repair.damping)
        if self._group is None:
            weights, mask = surgery.aim, self._to_matrix(self.tensor.mask.kept)
        else:
            self.tensor.mask.set(self._twin.read_mask(self.tensor))
            self.tensor.count_kept()
            alive = self._group.alive()
            weights, mask = surgery.choose(partial(self._choose, self._group.pattern, alive))
            self.tensor.prune_to(self._to_tensor(mask))
        weights = surgery.refit(weights, mask, repair.rounds)
        self.tensor.weights.copy_(self._to_tensor(weights))
        self.tensor.mask.apply(self.tensor.weights)
        if self._bias is not None:
            self._bias.add_(moments.find_shift(dense, weights).flatten().to(self._bias.dtype))
        self.give_up()
        return RepairedLayer(
            name=self.name,
            masked=surgery.measure_error(dense.masked_fill(~mask, 0.0)),
            repaired=surgery.measure_error(weights),
        )

    def _choose(self, pattern: Pattern, alive: Tensor, scores: Tensor) -> Tensor:
        """Return a mask that keeps the promised number of the atoms that are alive."""
        shape = self.tensor.output_first(self.tensor.weights).shape
        atoms = pattern.to_atoms(scores.reshape(shape)).masked_fill(~alive, -torch.inf)
        if not pattern.ranks_freely:
            protected, allowed = pattern.bounds(atoms, alive, self._keep)
            atoms = atoms.masked_fill(protected, torch.inf).masked_fill(~allowed, -torch.inf)
        kept = pattern.to_entries(pattern(atoms, self._keep), tuple(shape))
        before = self.tensor.output_first(self.tensor.mask.kept)
        return (kept & before).reshape(scores.shape)

    def _to_matrix(self, values: Tensor) -> Tensor:
        """Return values in the shape of the weight as ``(groups, outputs, inputs)``."""
        rows = self.tensor.output_first(values)
        groups = getattr(self.tensor.owner, "groups", 1)
        return rows.reshape(groups, len(rows) // groups, -1)

    def _to_tensor(self, matrix: Tensor) -> Tensor:
        """Undo `_to_matrix`."""
        shape = self.tensor.output_first(self.tensor.weights).shape
        return self.tensor.output_first(matrix.reshape(shape))


def plan_repairs(
    model: nn.Module,
    tensors: Sequence[PrunedTensor],
    twin: DenseTwin,
    groups: Mapping[str, Group],
) -> tuple[list[LayerRepair], dict[str, str]]:
    """Return the repairs of the pruned layers, and the reasons why other layers get none.

    Args:
        model: The pruned model.
        tensors: The tensors under pruning.
        twin: The values before.
        groups: The groups that choose masks anew, by name.
    """
    repairs, reasons = [], {}
    for tensor in tensors:
        if tensor.kept == tensor.total or len(tensor.shape) < 2:
            continue
        if why := _explain_unseen(tensor, model):
            reasons[tensor.name] = why
            continue
        bias = _find_bias(tensor, model)
        masks = (other.mask.kept for other in tensors if other.parameter is bias)
        repairs.append(LayerRepair(tensor, twin, groups.get(tensor.name), bias, next(masks, None)))
    return repairs, reasons


def _explain_unseen(tensor: PrunedTensor, model: nn.Module) -> str | None:
    """Return why a layer cannot be repaired; None if it can."""
    if tensor.parameter is not getattr(tensor.owner, "weight", None):
        return f"{type(tensor.owner).__name__} that makes the weight from this parameter"
    return find_hidden_inputs(tensor, model)


def _find_bias(tensor: PrunedTensor, model: nn.Module) -> nn.Parameter | None:
    """Return the bias of a layer; None without a bias, or if other modules share it."""
    bias = getattr(tensor.owner, "bias", None)
    places = sum(p is bias for module in model.modules() for p in module._parameters.values())
    return bias if isinstance(bias, nn.Parameter) and places == 1 else None

"""Adapters of PEFT, merged into a sparse base whose zeros stay."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.models.names import list_names
from lightning_prune.models.undisturbed import keep_quiet
from lightning_prune.tables.table import Column, Table

_PREFIX = "base_model.model."
_LISTED_NAMES = 5


@dataclass(frozen=True, kw_only=True)
class MergedLayer:
    """A weight of the base that adapters were merged into.

    Args:
        name: Name of the weight in the merged model.
        size: Number of weights.
        zeros_before: Number of weights that were 0 before.
        zeros: Number of weights that are 0 now.
        update_norm: Frobenius norm of the whole update of the adapters.
        dropped_norm: Frobenius norm of the part of the update that lay on zeros of the base.
    """

    name: str
    size: int
    zeros_before: int
    zeros: int
    update_norm: float
    dropped_norm: float


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """A merged model, and the price of the zeros.

    Args:
        model: The plain base model, without any adapter.
        layers: The merged weights, in the order of the model.
    """

    model: nn.Module
    layers: Sequence[MergedLayer]

    @property
    def sparsity_before(self) -> float:
        """The fraction of zeros in the merged weights before, counted."""
        return _share(sum(layer.zeros_before for layer in self.layers), self._size)

    @property
    def sparsity(self) -> float:
        """The fraction of zeros in the merged weights now, counted."""
        return _share(sum(layer.zeros for layer in self.layers), self._size)

    @property
    def dropped_share(self) -> float:
        r"""The share of the update that the zeros drop, of all layers together, in [0, 1].

        .. math:: \|\Delta W \odot (1 - M)\|_F \,/\, \|\Delta W\|_F

        A random update at sparsity 0.5 loses :math:`\sqrt{0.5} = 0.71`.
        """
        return _share(
            math.hypot(*(layer.dropped_norm for layer in self.layers)),
            math.hypot(*(layer.update_norm for layer in self.layers)),
        )

    @property
    def _size(self) -> int:
        return sum(layer.size for layer in self.layers)

    def table(self) -> Table:
        """Return sparsity and price of each layer, for a terminal."""
        rows = [
            (
                layer.name,
                *_format(
                    _share(layer.zeros_before, layer.size),
                    _share(layer.zeros, layer.size),
                    _share(layer.dropped_norm, layer.update_norm),
                ),
            )
            for layer in self.layers
        ]
        total = _format(self.sparsity_before, self.sparsity, self.dropped_share)
        return Table(
            title="Merged",
            columns=[
                Column(heading="weight", align="left"),
                Column(heading="sparsity before"),
                Column(heading="sparsity"),
                Column(heading="update dropped"),
            ],
            rows=[*rows, ("all", *total)],
            has_total=True,
            notes=["dropped: the share of the norm of the update that lay on zeros of the base"],
        )


@dataclass(frozen=True, kw_only=True)
class _BaseWeight:
    """A parameter of an adapted layer, with a copy of the values before the merge."""

    name: str
    owner: nn.Module
    attribute: str
    before: Tensor

    @property
    def now(self) -> Tensor:
        """The present values; PEFT may have replaced the parameter by a tensor."""
        tensor: Tensor = getattr(self.owner, self.attribute).data
        return tensor

    @property
    def is_empty(self) -> bool:
        """Whether the layer computes with nothing: every entry of the weight is 0."""
        return self.is_matrix and not self.before.any()

    @property
    def is_matrix(self) -> bool:
        """Whether the parameter is a weight; a bias is not."""
        return self.before.ndim > 1

    def put_back(self) -> None:
        """Take the values from before the merge again."""
        self.now.copy_(self.before)

    def mask(self) -> MergedLayer:
        """Zero the weights that were 0 before, and count."""
        pruned, now = self.before == 0, self.now
        update = now.float() - self.before.float()
        update_norm, dropped_norm = _norm(update), _norm(update[pruned])
        now.masked_fill_(pruned, 0.0)
        return MergedLayer(
            name=self.name,
            size=now.numel(),
            zeros_before=int(pruned.count_nonzero()),
            zeros=int((now == 0).count_nonzero()),
            update_norm=update_norm,
            dropped_norm=dropped_norm,
        )


@check_arguments
def merge_sparse(model: nn.Module) -> MergeReport:
    r"""Merge the active adapters of a PEFT model, and keep every zero of the base.

    .. math:: W' = M \odot (W + \Delta W), \quad M = [W \ne 0]

    PEFT itself merges: :math:`W + \Delta W` is the weight that ``merge_and_unload`` would make, by
    LoRA (Hu et al., 2021, https://arxiv.org/abs/2106.09685), DoRA or any other method that PEFT can
    merge. Then the weights that were 0 before are 0 again. So the merged model is not exactly the
    model with adapters: validate again. `MergeReport.dropped_share` says how much of the update is
    lost. Biases are merged without a mask. Meanwhile there is a copy of the adapted weights in
    memory.

    ::

        merged = merge_sparse(peft_model)
        print(merged.dropped_share, merged.sparsity)
        merged.model.save_pretrained("sparse")

    Args:
        model: The model from ``get_peft_model`` or ``PeftModel.from_pretrained``. As after
            ``merge_and_unload``, go on with the model of the report, not with this object.

    Returns:
        The plain base model, with the sparsity and the price of each merged weight.

    Raises:
        ModuleNotFoundError: If PEFT is not installed.
        TypeError: If the model is not a model of PEFT.
        ValueError: If no layer has an adapter, if adapters are merged already, if weights of the
            base are packed (as under QLoRA), sharded or not in memory, if a weight of the base is
            all zeros, or if PEFT cannot merge. Then the model is as before.
    """
    layers = _find_layers(model)
    weights = _remember_weights(layers)
    with keep_quiet(warned=["All adapters are already merged"]), torch.no_grad():
        try:
            for layer in layers.values():
                layer.merge(safe_merge=True)
            merged = [weight.mask() for weight in weights if weight.is_matrix]
            plain: nn.Module = model.merge_and_unload()  # type: ignore[operator]
        except BaseException:
            _undo(layers.values(), weights)
            raise
    return MergeReport(model=plain, layers=merged)


def _find_layers(model: nn.Module) -> dict[str, Any]:
    """Return each layer with adapters, outer layers first, by the name of the layer in the base."""
    try:
        from peft import PeftMixedModel, PeftModel
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        raise ModuleNotFoundError(
            "need peft to merge adapters, got none; pip install 'lightning-prune[peft]'"
        ) from error
    if not isinstance(model, PeftModel | PeftMixedModel):
        raise TypeError(
            f"need a model of PEFT, got model of type {type(model).__name__}; give the model that "
            "get_peft_model or PeftModel.from_pretrained returned"
        )
    layers = {
        name.removeprefix(_PREFIX).replace(".base_layer", ""): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    if not layers:
        raise ValueError(
            "need adapters inside layers, as those of LoRA, got none; prompts and prefixes cannot "
            "be merged"
        )
    merged = [name for name, layer in layers.items() if layer.merged]
    if merged:
        raise ValueError(
            f"need adapters that are not merged yet, got merged adapters in {_quote(merged)}; call "
            "model.unmerge_adapter() before"
        )
    return layers


def _remember_weights(layers: Mapping[str, Any]) -> list[_BaseWeight]:
    """Return every parameter of the adapted layers once, with a copy of the values."""
    packed: list[str] = []
    weights: dict[int, _BaseWeight] = {}
    for name, layer in layers.items():
        base: nn.Module = layer.get_base_layer()
        parameters = dict(base.named_parameters(recurse=False))
        matrices = [each for each in parameters.values() if each.ndim > 1]
        if not matrices or not all(_is_plain(each.data) for each in matrices):
            packed.append(f"'{name}' ({_describe(base, matrices)})")
            continue
        for attribute, parameter in parameters.items():
            weights.setdefault(
                id(parameter),
                _BaseWeight(
                    name=f"{name}.{attribute}",
                    owner=base,
                    attribute=attribute,
                    before=parameter.data.clone(),
                ),
            )
    if packed:
        raise ValueError(
            "need base weights that are whole tensors of floating-point numbers, got "
            f"{list_names(packed, _LISTED_NAMES)}: zeros are not kept in packed weights (as under "
            "QLoRA) or in shards; load the sparse base again, whole and without a "
            "quantization_config, load the adapters by PeftModel.from_pretrained, and merge there"
        )
    empty = [each.name for each in weights.values() if each.is_empty]
    if empty:
        raise ValueError(
            f"need a weight that is not 0 in each merged layer, got none in {_quote(empty)}; leave "
            "these layers out of the adapters, or merge them with merge_and_unload"
        )
    return list(weights.values())


def _undo(layers: Iterable[Any], weights: Iterable[_BaseWeight]) -> None:
    """Separate the adapters from the base again, and give the base the values from before."""
    for layer in layers:
        if layer.merged:
            layer.unmerge()
    for weight in weights:
        weight.put_back()


def _is_plain(values: Tensor) -> bool:
    """Whether a weight is a whole tensor of torch, in memory, whose entries can be added to."""
    is_wide = values.is_floating_point() and values.dtype.itemsize > 1
    return type(values) is Tensor and is_wide and not values.is_meta


def _describe(base: nn.Module, matrices: Sequence[Tensor]) -> str:
    """Return the class of a layer, and the kind of the weight."""
    kinds = {f"{type(each.data).__name__} of {each.dtype}" for each in matrices}
    return ", ".join([type(base).__name__, *sorted(kinds)])


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _format(*numbers: float) -> tuple[str, ...]:
    return tuple(f"{number:.4f}" for number in numbers)


def _quote(names: Sequence[str]) -> str:
    return list_names([f"'{name}'" for name in names], _LISTED_NAMES)

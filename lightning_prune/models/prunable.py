"""Which parameters of a module are prunable by default, and why the others are not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from lightning_prune.models.adapters import is_adapter
from lightning_prune.models.experts import LAYERS, find_input_axis, is_fused, is_router, stack_rows
from lightning_prune.models.graphs import find_tables
from lightning_prune.models.names import Descent, descend, plain_name
from lightning_prune.models.parametrizations import Effect, Trials

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NORMALIZATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
ADAPTER = "adapter"
"""The reason why the parameters of an adapter stay dense."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place where a parameter hangs in the model.

    Args:
        name: Full name of the parameter.
        attribute: Name of the parameter, or of the weight that it parametrizes, in the owner.
        owner: The module that computes with the parameter.
        descent: The modules around the parameter.
        effect: The effect of zeros in the parameter on the weight of the owner.
        is_table: Whether a graph looks up embeddings in the parameter.
    """

    name: str
    attribute: str
    owner: nn.Module
    descent: Descent
    effect: Effect
    is_table: bool

    def matches(self, glob: str) -> bool:
        """Whether the glob matches the name of the parameter or of a module around it."""
        parts = self.name.split(".")
        names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return any(fnmatchcase(name, glob) for name in names)

    @property
    def label(self) -> str:
        """The attribute, with the name of the `ParameterList` or `ParameterDict` that holds it."""
        is_in_list = isinstance(self.owner, nn.ParameterList | nn.ParameterDict)
        if is_in_list and len(self.descent) > 1:
            return f"{self.descent[-2][1]}.{self.attribute}"
        return self.attribute

    def reason_to_stay_dense(self, parameter: nn.Parameter) -> str | None:
        """Return why the parameter stays dense by default; None if it may be pruned."""
        if self.is_table or isinstance(self.owner, _EMBEDDINGS):
            return "embedding"
        if isinstance(self.owner, _NORMALIZATIONS):
            return "normalization"
        if is_adapter(self.descent):
            return ADAPTER
        if is_router(self.descent):
            return "router"
        if not is_lazy(parameter) and is_fused(parameter, self.owner, self.descent):
            return None
        if "weight" not in self.label:
            return "not named *weight*"
        return None


Found = dict[str, tuple[nn.Parameter, list[Place]]]
"""Each parameter under its first name, with every place where it hangs."""


def prunable_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return by name the weights that are pruned by default, whatever optimizer owns them.

    Where the module adds zeros of its own to a parameter, as `torch.nn.utils.prune` does, this is
    the weight with all zeros.
    """
    weights: dict[str, Tensor] = {}
    for name, (parameter, places) in find_parameters(module).items():
        made = judge_zeros(places).made
        if made is not None:
            places = [replace(place, effect=Effect()) for place in places]
        if not is_lazy(parameter) and not why_unusual(parameter, places):
            weights[name] = parameter if made is None else made
    return weights


def find_parameters(module: nn.Module) -> Found:
    """Return each parameter once, under its first name, with all places where it hangs."""
    modules = dict(module.named_modules(remove_duplicate=False))
    first_names: dict[int, str] = {}
    found: Found = {}
    trials, tables = Trials(), find_tables(module)
    for raw, parameter in module.named_parameters(remove_duplicate=False):
        path, _, attribute = raw.rpartition(".")
        owner, name = modules[path], plain_name(raw)
        effect = trials.judge(parameter, name, owner)
        if isinstance(owner, ParametrizationList):
            path, _, attribute = path.rpartition("parametrizations.")
            owner = modules[path.rstrip(".")]
        place = Place(
            name=name,
            attribute=attribute,
            owner=owner,
            descent=descend(modules, raw),
            effect=effect,
            is_table=id(parameter) in tables,
        )
        first = first_names.setdefault(id(parameter), name)
        found.setdefault(first, (parameter, []))[1].append(place)
    return found


def why_unusual(parameter: nn.Parameter, places: Sequence[Place]) -> str | None:
    """Return why a parameter is pruned only if a glob names it; None if it is by default."""
    reasons = [place.reason_to_stay_dense(parameter) for place in places]
    if "embedding" in reasons and len(places) > 1:
        return "tied to an embedding"
    reason = next(filter(None, reasons), None) or judge_zeros(places).why_lost
    if reason or is_lazy(parameter):
        return reason
    if not parameter.is_floating_point():
        return "not floating-point"
    if parameter.ndim < 2:
        return "fewer than 2 dimensions"
    if not isinstance(places[0].owner, LAYERS) and sum(size != 1 for size in parameter.shape) < 2:
        return "fewer than 2 dimensions larger than 1"
    return None


def judge_zeros(places: Sequence[Place]) -> Effect:
    """Return the effect of zeros in a parameter on the weights of all its places."""
    return Effect.join([place.effect for place in places])


def output_axis(parameter: Tensor, owner: nn.Module) -> int:
    """Return the axis of the output channels: 1 for transposed and Hugging Face's convolutions."""
    # A parametrization replaces the class of its owner by a subclass.
    is_conv1d = any(kind.__name__ == "Conv1D" for kind in type(owner).__mro__)
    inputs_first = isinstance(owner, _ConvTransposeNd) or is_conv1d
    return int(inputs_first and parameter.ndim > 1)


def as_matrix(parameter: Tensor, owner: nn.Module) -> Tensor:
    """Return a parameter as ``(output, input, ...)``, with the rows of fused experts stacked."""
    input_axis = find_input_axis(parameter, owner)
    if input_axis is not None:
        return stack_rows(parameter, input_axis)
    return parameter.transpose(0, output_axis(parameter, owner))

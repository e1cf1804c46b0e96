"""The sizes that torch's own layers hold as numbers, beside the weights that have these sizes."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

_OF_TRANSFORMERS = "Conv1D"
_CHANNELS = ("in_channels", "out_channels")
_OUTPUTS = ("out_channels", "out_features", "num_features", "num_channels", "nf")
_STATISTICS = ("running_mean", "running_var")
_SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    _ConvNd: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    _NormBase: ("num_features",),
    nn.GroupNorm: ("num_channels", "num_groups"),
    nn.Embedding: ("embedding_dim",),
    nn.PReLU: ("num_parameters",),
}


def list_sizes(kind: type[nn.Module]) -> tuple[str, ...]:
    """Return the names of the attributes that hold the sizes of a layer; none for other modules."""
    if kind.__name__ == _OF_TRANSFORMERS:
        return ("nx", "nf")
    return next((names for layer, names in _SIZES.items() if issubclass(kind, layer)), ())


def has_sized_tensors(child: nn.Module) -> bool:
    """Whether `fit_layer` can read the sizes of a layer off the tensors of the layer."""
    return _find_sized(child) is not None


def fit_layer(child: nn.Module) -> None:
    """Give a layer of torch the sizes of a smaller weight.

    Args:
        child: The layer, with the new weight and the sizes of the old weight; any other module
            stays as it is.
    """
    weight = _find_sized(child)
    if weight is None:
        return
    if isinstance(child, _ConvNd):
        _fit_convolution(child, weight)
    elif isinstance(child, nn.Linear):
        child.out_features, child.in_features = weight.shape
    elif isinstance(child, _NormBase):
        child.num_features = len(weight)
    elif isinstance(child, nn.GroupNorm):
        child.num_groups = child.num_groups * len(weight) // child.num_channels
        child.num_channels = len(weight)
    elif isinstance(child, nn.Embedding):
        child.embedding_dim = weight.shape[1]
    elif isinstance(child, nn.PReLU):
        child.num_parameters = len(weight)
    elif type(child).__name__ == _OF_TRANSFORMERS:
        child.nx, child.nf = weight.shape  # type: ignore[assignment]


def has_fitting_tensors(child: nn.Module, fresh: nn.Module) -> bool:
    """Whether the tensors of a fitted layer can be those of a dense layer without channels.

    Args:
        child: Any module; other modules than layers of torch can.
        fresh: The dense layer.
    """
    sizes = {name: getattr(child, name) for name in list_sizes(type(child))}
    outputs = next((sizes[name] for name in _OUTPUTS if name in sizes), None)
    vectors = [getattr(child, name, None) for name in ("weight", "bias", *_STATISTICS)]
    if outputs is not None and any(
        isinstance(vector, Tensor) and vector.ndim == 1 and len(vector) != outputs
        for vector in vectors
    ):
        return False
    if isinstance(child, _ConvNd) and isinstance(fresh, _ConvNd):
        is_even = child.groups > 0 and not any(sizes[name] % child.groups for name in _CHANNELS)
        return is_even and child.weight.shape[2:] == fresh.weight.shape[2:]
    if isinstance(child, nn.GroupNorm) and isinstance(fresh, nn.GroupNorm):
        return child.num_channels * fresh.num_groups == child.num_groups * fresh.num_channels
    if isinstance(child, nn.Embedding) and isinstance(fresh, nn.Embedding):
        return len(child.weight) == len(fresh.weight)
    return True


def _fit_convolution(child: _ConvNd, weight: Tensor) -> None:
    is_transposed = isinstance(child, _ConvTransposeNd)
    before = child.in_channels if is_transposed else child.out_channels
    if weight.shape[0] != before and child.groups == child.in_channels > 1:
        child.groups = child.groups * weight.shape[0] // before
    sizes = weight.shape[0], weight.shape[1] * child.groups
    if is_transposed:
        child.in_channels, child.out_channels = sizes
    else:
        child.out_channels, child.in_channels = sizes


def _find_sized(child: nn.Module) -> Tensor | None:
    """Return the tensor that has the sizes of a layer."""
    weight = getattr(child, "weight", None)
    if weight is None and isinstance(child, _NormBase):
        weight = child.running_mean
    return weight if isinstance(weight, Tensor) else None

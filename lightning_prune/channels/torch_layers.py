"""The sizes that torch's own layers hold as numbers, beside the weights that have these sizes."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

_OF_TRANSFORMERS = "Conv1D"
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

"""The layers that TensorRT can run on sparse tensor cores, in words."""

from collections import defaultdict
from collections.abc import Mapping

from lightning_prune.models.names import list_names

SPARSE = "sparse"
_LISTED_NAMES = 8


def describe_tensorrt(found: Mapping[str, str]) -> list[str]:
    """Return which layers TensorRT can take, and why it cannot take others; empty if it takes none.

    Args:
        found: `SPARSE`, or the reason against it, by the name of the layer; empty for a layer
            without a matrix.

    Examples:
        >>> describe_tensorrt({"a": SPARSE, "b": SPARSE, "c": "3 inputs are too few", "d": ""})
        ["TensorRT's --sparsity=enable can take a, b; not c: 3 inputs are too few"]
        >>> describe_tensorrt({"c": "3 inputs are too few"})
        []
    """
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in found.items():
        names[reason].append(name or "the model")
    if SPARSE not in names:
        return []
    taken = list_names(names.pop(SPARSE), at_most=_LISTED_NAMES)
    names.pop("", None)
    others = [
        f"; not {list_names(layers, at_most=_LISTED_NAMES)}: {reason}"
        for reason, layers in names.items()
    ]
    return [f"TensorRT's --sparsity=enable can take {taken}{''.join(others)}"]

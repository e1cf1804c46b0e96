"""torchvision beside a build of torch that it was not compiled for."""

import importlib

import torch

_OPERATORS = ("nms", "qnms")
_declared: list[torch.library.Library] = []  # a library is gone when nothing refers to it


def declare_missing_operators() -> None:
    """Declare operators without an implementation where the import of torchvision fails.

    The package index holds torchvision for CUDA builds of torch only. Beside a CPU build, its
    operators do not load, and the import stops where it registers shapes for them. The networks of
    the zoo call none of these operators.
    """
    if _declared:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in _OPERATORS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)

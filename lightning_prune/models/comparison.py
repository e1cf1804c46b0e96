"""Outputs of two modules against each other."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_prune.models.calls import Call
from lightning_prune.models.compiled import copy_uncompiled
from lightning_prune.models.errors import describe_error
from lightning_prune.models.examples import make_random_calls
from lightning_prune.models.trees import find_tensors, map_tensors
from lightning_prune.models.undisturbed import keep_generators, keep_modes, keep_tensors


def relative_difference(expected: Tensor, found: Tensor) -> float:
    r"""Return how far an output is from the expected one, as a fraction of the largest magnitude.

    .. math:: \max |y' - y| / \max |y|

    Entries are equal where both are NaN, or the same infinity. The difference is infinite where
    only one is NaN, where infinities differ, from an output of zeros, and between different
    shapes. For integers and booleans, it is the share of entries that differ.

    Args:
        expected: The output :math:`y`.
        found: The output :math:`y'`.

    Examples:
        >>> relative_difference(torch.tensor([4.0, torch.nan]), torch.tensor([3.0, torch.nan]))
        0.25
        >>> relative_difference(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 9]))
        0.25
    """
    if expected.shape != found.shape:
        return torch.inf
    is_same = (expected == found) | (expected.isnan() & found.isnan())
    if is_same.all():
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return 1 - is_same.double().mean().item()
    wide = torch.complex128 if expected.is_complex() else torch.float64
    distance = (found.to(wide) - expected.to(wide)).abs().masked_fill(is_same, 0.0).max()
    largest = expected.to(wide).abs().nan_to_num(0.0, posinf=0.0).max()
    return (distance / largest).nan_to_num(torch.inf, posinf=torch.inf).item()


def largest_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest relative difference of several outputs.

    Raises:
        ValueError: If their number or a shape differs.
    """
    shapes = [[list(tensor.shape) for tensor in outputs] for outputs in (expected, found)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"need outputs of the shapes {shapes[0]}, got {shapes[1]}")
    pairs = zip(expected, found, strict=True)
    return max((relative_difference(before, after) for before, after in pairs), default=0.0)


class Reference:
    """The outputs of a module without dropout, in both modes and in double precision.

    A mode in which the module itself cannot be called is left out. A module whose code is for
    single precision only is called in its own precision.

    Args:
        module: Left as it is.
        call: The arguments of ``forward``.
        batches: The number of batches: the call and random ones like it.

    Raises:
        Exception: Whatever ``forward`` of the module raises in both modes.
    """

    def __init__(self, module: nn.Module, call: Call, batches: int) -> None:
        for dtype in (torch.float64, None):
            copied = copy_uncompiled(module).to(dtype)
            self._dtype = dtype
            first, *others = _make_batches(call, dtype, batches)
            found = {mode: _run_if_possible(copied, first, mode) for mode in (False, True)}
            if any(outputs is not None for outputs in found.values()):
                break
        else:
            _run(copied, first, False)  # which raises
        self._cases: list[tuple[Call, bool]] = []
        self._expected: list[list[Tensor]] = []
        for mode, outputs in found.items():
            if outputs is not None:
                self._cases += [(batch, mode) for batch in (first, *others)]
                self._expected += [outputs, *(_run(copied, batch, mode) for batch in others)]

    @property
    def is_finite(self) -> bool:
        """Whether no output has a NaN or an infinity, which hide a difference."""
        outputs = itertools.chain.from_iterable(self._expected)
        return all(bool(output.isfinite().all()) for output in outputs)

    def difference(self, other: nn.Module, *, limit: float = torch.inf) -> float:
        """Return the largest relative difference of another module's outputs.

        Args:
            other: Left as it is.
            limit: The first difference above it is returned, and the other batches are not run.

        Raises:
            Exception: Whatever ``forward`` of the other module raises.
        """
        copied = copy_uncompiled(other).to(self._dtype)
        largest = 0.0
        for case, expected in zip(self._cases, self._expected, strict=True):
            largest = max(largest, largest_difference(expected, _run(copied, *case)))
            if largest > limit:
                break
        return largest


def describe_failure(module: nn.Module, call: Call) -> str | None:
    """Return why a copy of a module cannot be called in evaluation mode; None if it can."""
    try:
        _run(copy_uncompiled(module), call, False)
    except Exception as error:  # of the model's own code
        return describe_error(error)
    return None


def _make_batches(call: Call, dtype: torch.dtype | None, number: int) -> list[Call]:
    """Return the call and random ones like it, floating-point tensors in the given precision."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor

    first = map_tensors(convert, call.double_single_sample())
    return [first, *make_random_calls(first, [first.batch_size] * (number - 1))]


def _run_if_possible(module: nn.Module, call: Call, training: bool) -> list[Tensor] | None:
    try:
        return _run(module, call, training)
    except Exception:  # of the model's own code
        return None


def _run(module: nn.Module, call: Call, training: bool) -> list[Tensor]:
    """Return the tensors among the outputs, with the same random numbers at each call."""
    with (
        torch.no_grad(),
        keep_modes(module),
        keep_tensors(module, parameters=False),
        keep_generators(seed=0),
        _WithoutDropout(),
    ):
        module.train(training)
        return find_tensors(module(*call.arguments, **call.keywords))


class _WithoutDropout(TorchFunctionMode):
    """Makes dropout return its input, also where code calls it as a function."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name, kwargs = getattr(function, "__name__", ""), dict(kwargs or {})
        if name.endswith("dropout") or name[:-2].endswith("dropout"):
            return args[0] if args else kwargs["input"]
        if name == "multi_head_attention_forward":
            kwargs["training"] = False
        elif name == "scaled_dot_product_attention" and len(args) > 4:
            args = (*args[:4], 0.0, *args[5:])
        elif name == "scaled_dot_product_attention":
            kwargs["dropout_p"] = 0.0
        return function(*args, **kwargs)

"""Modules that stand where a branch was left out: they pass the input on, or return zeros."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.models.calls import Call
from lightning_prune.models.names import named_modules
from lightning_prune.models.trees import find_tensors
from lightning_prune.models.undisturbed import keep_generators, keep_modes, keep_tensors

_INPUT, _ZEROS, _NOTHING = "input", "zeros", "none"


@dataclass(frozen=True, kw_only=True)
class Absence:
    """What takes the place of a module that is left out.

    Args:
        module: The name of the module.
        outputs: ``"input"`` to pass the first tensor on, or ``"zeros"`` for zeros like the first
            tensor; for a tuple, these words and ``"none"``, with commas.
    """

    module: str
    outputs: str


class Absent(nn.Module):
    """Stands where a module was left out: it has no weights, and computes nothing.

    Args:
        outputs: As in `Absence`.

    Raises:
        ValueError: If ``outputs`` has another word.

    Examples:
        >>> Absent("input")(torch.ones(2)), Absent("zeros,none")(torch.ones(2))
        (tensor([1., 1.]), (tensor([0., 0.]), None))
    """

    batch_first = False
    """A transformer layer of torch asks its attention before it takes a path of fused kernels."""

    def __init__(self, outputs: str) -> None:
        super().__init__()
        if not set(outputs.split(",")) <= {_INPUT, _ZEROS, _NOTHING}:
            raise ValueError(f"need outputs of an absent module, got {outputs!r}")
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the first tensor among the arguments, or zeros like it."""
        first = find_tensors((args, kwargs))[0]
        words = self.outputs.split(",")
        zeros = torch.zeros_like(first) if _ZEROS in words else None
        made = tuple({_INPUT: first, _ZEROS: zeros, _NOTHING: None}[word] for word in words)
        return made if len(made) > 1 else made[0]

    def extra_repr(self) -> str:
        """Return what the module returns."""
        return self.outputs


def put_absences(module: nn.Module, absences: Iterable[Absence]) -> None:
    """Put a module without weights in the place of each module that is left out.

    Raises:
        ValueError: If the module lacks one of them.
    """
    for absence in absences:
        modules = named_modules(module)
        parent, _, attribute = absence.module.rpartition(".")
        if absence.module not in modules or parent not in modules:
            raise ValueError(f"need a module '{absence.module}', got a model without it")
        modules[parent]._modules[attribute] = Absent(absence.outputs)
        if isinstance(modules[parent], nn.TransformerEncoderLayer):
            vars(modules[parent])["activation_relu_or_gelu"] = 0  # for fused kernels of all layers


def find_absences(module: nn.Module) -> dict[str, str]:
    """Return the outputs of the modules that stand where others were left out, by name."""
    return {
        name: child.outputs
        for name, child in named_modules(module).items()
        if isinstance(child, Absent)
    }


def find_absent_outputs(
    module: nn.Module, call: Call, names: Sequence[str], last: Set[str]
) -> Mapping[str, str | None]:
    """Run a module, and return the `Absence.outputs` for some modules in it, by name.

    It is None for a module that does not return a tensor, or a tuple of at least two.

    Args:
        module: It is left as it is.
        call: The arguments of ``forward``.
        names: The names of the modules.
        last: The names of those that return zeros; the others pass the input on.
    """
    found: dict[str, str | None] = dict.fromkeys(names)
    modules = named_modules(module)

    def note(name: str) -> Any:
        def hook(child: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
            taken = find_tensors((args, kwargs))
            word = _ZEROS if name in last else _INPUT
            found[name] = _describe(outputs, word) if taken else None

        return hook

    hooks = [
        modules[name].register_forward_hook(note(name), with_kwargs=True)
        for name in found
        if name in modules
    ]
    with (
        torch.no_grad(),
        keep_modes(module),
        keep_tensors(module, parameters=False),
        keep_generators(),
    ):
        module.eval()
        module(*call.arguments, **call.keywords)
    for hook in hooks:
        hook.remove()
    return found


def _describe(outputs: Any, word: str) -> str | None:
    """Return a word for a tensor; for a tuple, the word for the first tensor and none for others.

    A transformer returns the result first, and what it has on the way after it.
    """
    if isinstance(outputs, Tensor):
        return word
    if type(outputs) is not tuple or len(outputs) < 2 or not isinstance(outputs[0], Tensor):
        return None
    return ",".join([word, *[_NOTHING] * (len(outputs) - 1)])

"""One model of the zoo, pruned in four ways."""

import copy
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.parts.zoo.entry import Builder
from lightning_prune import ChannelPattern, NMPattern, Pattern, Pruner, UnstructuredPattern, shrink

STEPS = 3
LARGEST_DIFFERENCE = 1e-5
_LONGEST = 200  # characters of an error


@dataclass(kw_only=True)
class Trial:
    """The cells of a model's row, and the faults that it showed.

    Args:
        parameters: The number of parameters.
        selected: The share of the parameters that is pruned by default.
        landing: The pruned weights that are zero, as a fraction, after pruning to 0.9.
        two_four: The number of tensors that ended half zero under 2:4.
        removed: By scope of the channels, the share of the parameters that removal took away.
        difference: The largest difference of answers after removal, over the largest answer.
        attach: Seconds of `Pruner.attach` with all channels.
        shrink: Seconds of `shrink` after that.
        dense: The share of the parameters that stays dense, by reason.
        refusals: The reasons of refusals.
        faults: Sentences on faults.
    """

    parameters: int = 0
    selected: float = math.nan
    landing: float = math.nan
    two_four: str = "-"
    removed: dict[str, float] = field(default_factory=dict)
    difference: float = 0.0
    attach: float = math.nan
    shrink: float = math.nan
    dense: dict[str, float] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @staticmethod
    def headings() -> tuple[str, ...]:
        """Return the headings over the cells."""
        return (
            "parameters",
            "selected",
            "zeros at 0.9",
            "2:4 tensors",
            "removed, inner",
            "removed, all",
            "answers differ by",
            "attach, s",
            "shrink, s",
            "stays dense",
        )

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the row."""
        dense = sorted(self.dense.items(), key=lambda item: -item[1])
        return (
            f"{self.parameters:,}",
            _write(self.selected, ".3f"),
            _write(self.landing, ".5f"),
            self.two_four,
            *(_write(self.removed.get(scope, math.nan), ".3f") for scope in ("inner", "all")),
            _write(self.difference if self.removed else math.nan, ".0e"),
            _write(self.attach, ".1f"),
            _write(self.shrink, ".1f"),
            "; ".join(f"{reason} {share:.3f}" for reason, share in dense[:3]),
        )


def try_model(build: Builder) -> Trial:
    """Build a model and prune copies of it in four ways."""
    trial = Trial()
    torch.manual_seed(0)
    model, example = build()
    trial.parameters = sum(parameter.numel() for parameter in model.parameters())
    _land(trial, copy.deepcopy(model), example)
    _end_in_two_four(trial, copy.deepcopy(model), example)
    for scope in ("inner", "all"):
        _remove(trial, copy.deepcopy(model), example, scope)
    return trial


def _land(trial: Trial, model: nn.Module, example: Any) -> None:
    """Prune to 0.9 unstructured, and count the zeros."""
    pruner = _prune(trial, model, example, 0.9, UnstructuredPattern())
    if pruner is None:
        return
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total = sum(tensor.total for tensor in pruner.tensors)
    zeros = sum(_count_zeros(pruner).values())
    trial.selected, trial.landing = total / trial.parameters, zeros / total
    for name, reason in pruner.dense.items():
        trial.dense[reason] = trial.dense.get(reason, 0) + sizes[name] / trial.parameters
    if total - zeros != round(total * (1 - 0.9)):
        trial.faults.append(f"{zeros:,} of {total:,} weights are zero at a sparsity of 0.9")


def _end_in_two_four(trial: Trial, model: nn.Module, example: Any) -> None:
    """Prune to 2:4, and count the tensors that end exactly half zero."""
    pruner = _prune(trial, model, example, 0.5, NMPattern(n=2, m=4))
    if pruner is None:
        return
    zeros = _count_zeros(pruner)
    halved = sum(zeros[tensor.name] * 2 == tensor.total for tensor in pruner.tensors)
    trial.two_four = str(halved)
    if halved < len(pruner.tensors):
        trial.faults.append(f"{len(pruner.tensors) - halved} tensors are not half zero under 2:4")


def _count_zeros(pruner: Pruner) -> dict[str, int]:
    """Count the pruned weights that are zero, by tensor.

    Kept weights can be zero too, as in a head that starts at zero.
    """
    masks = pruner.masks
    return {
        tensor.name: int(((tensor.parameter == 0) & ~masks[tensor.name]).sum())
        for tensor in pruner.tensors
    }


def _remove(trial: Trial, model: nn.Module, example: Any, scope: Any) -> None:
    """Prune half of the channels and remove them; compare the answers."""
    pattern = ChannelPattern(round_to=1, scope=scope)
    if _prune(trial, model, example, 0.5, pattern) is None:
        return
    start = time.perf_counter()
    try:
        smaller = shrink(model.eval(), example).eval()
    except Exception as error:
        trial.faults.append(f"shrink after scope='{scope}': {_describe(error)}")
        return
    trial.shrink = time.perf_counter() - start
    left = sum(parameter.numel() for parameter in smaller.parameters())
    trial.removed[scope] = 1 - left / trial.parameters
    difference = _compare(model, smaller, example)
    trial.difference = max(trial.difference, difference)
    if not difference <= LARGEST_DIFFERENCE:
        trial.faults.append(f"the answers differ by {difference:.0e} after scope='{scope}'")


def _prune(
    trial: Trial, model: nn.Module, example: Any, sparsity: float, pattern: Pattern
) -> Pruner | None:
    """Train for a few steps under pruning; return None if the recipe is refused."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    try:
        pruner = _attach(trial, model, optimizer, example, sparsity, pattern)
    except ValueError as error:
        trial.refusals.append(f"{pattern}: {_describe(error)}")
        return None
    except Exception as error:
        trial.faults.append(f"{pattern}: {_describe(error)}")
        return None
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        sum(answer.square().mean() for answer in _call(model, example)).backward()
        pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()
    return pruner


def _attach(
    trial: Trial,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    example: Any,
    sparsity: float,
    pattern: Pattern,
) -> Pruner:
    """Attach; if an error gives lines to add to the recipe, add them and try again, once."""
    options = {"steps": STEPS, "example": example}
    start = time.perf_counter()
    pruner = Pruner(sparsity=sparsity, pattern=pattern)
    try:
        pruner.attach(model, optimizer, **options)
    except ValueError as error:
        _, remedy, lines = str(error).partition("sparsity:")
        if not remedy:
            raise
        targets = yaml.safe_load(remedy + lines)["sparsity"]
        pruner = Pruner(sparsity=targets, pattern=pattern)
        pruner.attach(model, optimizer, **options)
    trial.attach = time.perf_counter() - start
    return pruner


@torch.no_grad()
def _compare(model: nn.Module, smaller: nn.Module, example: Any) -> float:
    """Return the largest difference of answers to fresh inputs, over the largest answer."""
    torch.manual_seed(1)
    fresh = tree_map(
        lambda leaf: torch.randn_like(leaf) if leaf.is_floating_point() else leaf, example
    )
    differences = [0.0]
    for expected, found in zip(_call(model, fresh), _call(smaller, fresh), strict=True):
        largest, gap = float(expected.abs().max()), float((expected - found).abs().max())
        differences.append(gap / largest if gap else 0.0)
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _call(model: nn.Module, example: Any) -> list[Tensor]:
    """Return the tensors of floats among the answers of a model."""
    if isinstance(example, dict):
        answers = model(**example)
    else:
        answers = model(*example) if isinstance(example, tuple) else model(example)
    leaves = tree_leaves(answers)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _describe(error: Exception) -> str:
    """Return the kind of an error, and the start of the first line."""
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line[:_LONGEST]}"


def _write(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"

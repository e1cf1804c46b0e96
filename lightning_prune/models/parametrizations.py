"""The weight that a parametrization or a hook makes of parameters, and whether zeros survive it."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from lightning_prune.models.undisturbed import keep_generators

# What the hooks of `torch.nn.utils` append to the name of the weight that they make.
_PARTS_OF_NAMES = {"g", "v", "orig"}
_NARROW = (torch.float16, torch.bfloat16)
_TABLE = 65_521  # random values, a prime number so that no shape repeats them in step
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FORWARDS = ("forward", "_conv_forward")
_Run = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The effect of zeros in a parameter on the weight that the module computes with.

    Args:
        why_lost: Why the zeros of the parameter are not those of the weight; None if they are.
        row_axes: The weight is not finite if the parameter is 0 at a whole index of these axes: a
            row. With no axis the whole parameter is a row. None if each entry may be 0.
        made: The present weight, if zeros survive but others are added; else None.
    """

    why_lost: str | None = None
    row_axes: tuple[int, ...] | None = None
    made: Tensor | None = None

    @classmethod
    def join(cls, effects: Sequence["Effect"]) -> "Effect":
        """Return the effect of a parameter that hangs in several places."""
        reasons = [effect.why_lost for effect in effects if effect.why_lost]
        rows = {effect.row_axes for effect in effects if effect.row_axes is not None}
        if len(rows - {()}) > 1:
            reasons.append("rows along several axes must keep a weight")
        return cls(
            why_lost=next(iter(reasons), None),
            row_axes=max(rows, key=len, default=None),
            made=next((effect.made for effect in effects if effect.made is not None), None),
        )


class Trials:
    """Trials of the parameters of a model, in the order of the model.

    Of the parameters that make a weight together, only the first may lose entries: the zeros of
    several parameters would add up.
    """

    def __init__(self) -> None:
        self._first: dict[tuple[int, str], tuple[nn.Parameter, str]] = {}

    def judge(self, parameter: nn.Parameter, name: str, holder: nn.Module) -> Effect:
        """Return the effect of zeros in a parameter; nothing in the model changes.

        Args:
            parameter: The parameter.
            name: Full name of the parameter.
            holder: The module, or list of parametrizations, that holds the parameter.
        """
        attribute = name.rpartition(".")[2]
        making = _find_making(holder, attribute)
        if making is None:
            return _judge_layer(holder) if attribute == "weight" else Effect()
        try:
            with torch.no_grad(), keep_generators(seed=0):
                effect = _try_zeros(parameter, making)
        except Exception as error:  # any code of a user
            return Effect(why_lost=f"{making.title} cannot be tried: {error}")
        if effect.why_lost:
            return effect
        first, first_name = self._first.setdefault((id(holder), making.weight), (parameter, name))
        if first is not parameter:
            return Effect(why_lost=f"the same weight is pruned in '{first_name}'")
        return effect


@dataclass(frozen=True, kw_only=True)
class _Making:
    """The making of a weight from parameters.

    Args:
        holder: The module, or list of parametrizations, that holds the parameters.
        weight: Name of the weight; empty for the only weight of a list of parametrizations.
        hooks: The hooks that make the weight; empty for a list of parametrizations.
        steps: Names of the classes that take part, in order.
    """

    holder: nn.Module
    weight: str = ""
    hooks: tuple[Callable[..., Any], ...] = ()
    steps: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The classes in words."""
        return ", ".join(self.steps)

    def run(self, values: Mapping[int, Tensor], *, training: bool) -> Tensor:
        """Return the weight that is made of other values, given by the ids of parameters."""
        stand_in = _copy_shells(self.holder, values, training=training)
        for hook in self.hooks:
            hook(stand_in, ())
        made: Tensor = getattr(stand_in, self.weight) if self.hooks else stand_in()
        return made


def _judge_layer(layer: Any) -> Effect:
    """Return the effect of zeros in the weight of a layer with a ``forward`` of its own.

    Such a layer may compute another weight from its weight, as weight standardization does: Qiao et
    al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization" (2019),
    https://arxiv.org/abs/1903.10520. The weights that read the first input of each group are set to
    0. Then no output may depend on these inputs. In a depthwise convolution, where each group has a
    single input, all positions of a kernel but one are set to 0. Then an input may reach a single
    position of each output. All other inputs are 0: a layer may quantize each input on a scale of
    all inputs. A layer that takes other arguments than a layer of torch is not judged.
    """
    kind = next((each for each in type(layer).__mro__ if each in _LAYERS), None)
    names = [name for name in _FORWARDS if hasattr(kind, name)]
    is_torchs = all(getattr(type(layer), name) is getattr(kind, name) for name in names)
    if kind is None or is_torchs or is_lazy(layer.weight):
        return Effect()
    try:
        with torch.no_grad(), keep_generators(seed=0):
            is_lost = (_depends_on_pruned_inputs if layer.weight.shape[1] > 1 else _spreads)(layer)
    except Exception:  # any code of a user: the layer is not to be called alone
        return Effect()
    return Effect(why_lost=f"zeros do not survive {type(layer).__name__}" if is_lost else None)


def _depends_on_pruned_inputs(layer: Any) -> bool:
    """Whether outputs of a layer depend on inputs whose weights are all 0."""
    weight = layer.weight
    values = {id(each): _draw(each) for each in layer.parameters(recurse=False)}
    values[id(weight)][:, 0] = 0
    stand_in, inputs = _copy_shells(layer, values, training=False), _draw_inputs(layer)
    usual = stand_in.forward(inputs)  # without hooks
    nothing, pruned = torch.zeros_like(inputs), torch.zeros_like(inputs)
    pruned[:, :: weight.shape[1]] = 1
    before, after = stand_in.forward(nothing), stand_in.forward(pruned)
    return not torch.allclose(before, after, rtol=1e-6, atol=1e-6 * float(usual.abs().max()))


def _spreads(layer: Any) -> bool:
    """Whether an input reaches several positions of an output through a single nonzero weight."""
    values = {id(each): _draw(each) for each in layer.parameters(recurse=False)}
    values[id(layer.weight)].flatten(1)[:, 1:] = 0
    stand_in, nothing = _copy_shells(layer, values, training=False), _draw_inputs(layer).zero_()
    impulse = nothing.clone()
    middle = impulse
    for size in nothing.shape[2:]:
        middle = middle.select(2, size // 2)
    middle += 1
    change = (stand_in.forward(impulse) - stand_in.forward(nothing)).abs().flatten(2)
    return bool(((change > 1e-4 * change.max()).sum(2) > 1).any())


def _draw_inputs(layer: Any) -> Tensor:
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    shape = (1, groups * weight.shape[1], *(4 * size for size in weight.shape[2:]))
    return torch.rand(shape, dtype=_widen(weight).dtype, device="cpu").to(weight.device)


def _find_making(holder: nn.Module, attribute: str) -> _Making | None:
    """Return how a weight is made of a parameter; None if the parameter is the weight."""
    if isinstance(holder, ParametrizationList):
        return _Making(holder=holder, steps=tuple(type(step).__name__ for step in holder))
    hooks, weights = [], []
    for hook in holder._forward_pre_hooks.values():
        weight = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
        if not isinstance(weight, str) or not attribute.startswith(f"{weight}_"):
            continue
        if _PARTS_OF_NAMES.issuperset(attribute.removeprefix(f"{weight}_").split("_")):
            hooks.append(hook)
            weights.append(weight)
    if not hooks:
        return None
    return _Making(
        holder=holder,
        weight=min(weights, key=len),
        hooks=tuple(hooks),
        steps=tuple(type(hook).__name__ for hook in hooks),
    )


def _copy_shells(module: nn.Module, values: Mapping[int, Tensor], *, training: bool) -> nn.Module:
    """Return a copy that shares nothing that a forward pass writes to: buffers, modes, lists."""
    copied: nn.Module = module.__new__(type(module))
    containers = (dict, list, set)
    copied.__dict__ = {
        name: copy.copy(value) if isinstance(value, containers) else value
        for name, value in vars(module).items()
    }
    copied.training = training
    for name, parameter in module._parameters.items():
        if parameter is not None:
            copied._parameters[name] = values.get(id(parameter), parameter)  # type: ignore[assignment]
    for name, buffer in module._buffers.items():
        if buffer is not None:
            copied._buffers[name] = _widen(buffer.detach().clone())
    for name, child in module._modules.items():
        if child is not None:
            copied._modules[name] = _copy_shells(child, values, training=training)
    return copied


def _try_zeros(parameter: nn.Parameter, making: _Making) -> Effect:
    """Give the making of a weight generic values with zeros, and look where the weight is 0."""
    parameters = making.holder.parameters(recurse=not making.hooks)
    drawn = {id(each): _draw(each) for each in parameters}
    values = drawn[id(parameter)]

    def run(pruned: Tensor, *, training: bool = False) -> Tensor:
        zeroed = values.masked_fill(pruned, 0)
        return making.run(drawn | {id(parameter): zeroed}, training=training)

    everything = torch.ones_like(values, dtype=torch.bool)
    made = run(everything)
    if made.shape != values.shape:
        return Effect(why_lost=f"{making.title} makes a weight of another shape")
    order = _tile(torch.rand(_TABLE, device="cpu"), values.shape).to(values.device)
    if _is_finite(made):
        return _compare(making, run, [order < 0.5], row_axes=None)
    found = None
    for axes in _find_row_axes(run, everything):
        rest = [axis for axis in range(values.ndim) if axis not in axes]
        others = order < order.amax(rest, keepdim=True) if rest else ~everything
        found = _compare(making, run, [others, others & (order < 0.5)], row_axes=axes)
        if not found.why_lost:
            break
    assert found is not None
    return found


def _find_row_axes(run: _Run, everything: Tensor) -> Iterator[tuple[int, ...]]:
    """Yield each axis with an index that cannot be 0; without such an axis, the tensor is a row."""
    is_found = False
    for axis in range(everything.ndim):
        pruned = torch.zeros_like(everything)
        pruned.select(axis, 0).fill_(True)
        if not _is_finite(run(pruned)):
            is_found = True
            yield (axis,)
    if not is_found:
        yield ()


def _compare(
    making: _Making, run: _Run, trials: Sequence[Tensor], row_axes: tuple[int, ...] | None
) -> Effect:
    """Return the effect of zeros in a parameter, from masks of the zeros, the most zeros first."""
    weights = [(pruned, run(pruned)) for pruned in trials]
    in_training = run(trials[-1], training=True)
    lost = any(not _is_finite(made) or _has_other(made, pruned) for pruned, made in weights)
    if lost or _has_other(in_training, trials[-1]):
        return Effect(why_lost=f"zeros do not survive {making.title}")
    if any(((made == 0) & ~pruned).any() for pruned, made in weights):
        made = making.run({}, training=False)
        return Effect(why_lost=f"{making.title} adds zeros", row_axes=row_axes, made=made)
    return Effect(row_axes=row_axes)


def _has_other(made: Tensor, pruned: Tensor) -> bool:
    """Whether a pruned entry is not 0."""
    return bool(((made != 0) & pruned).any())


def _is_finite(made: Tensor) -> bool:
    """Whether all values are finite: then the sum of values of a trial is."""
    return bool(made.sum().isfinite())


def _draw(parameter: Tensor) -> Tensor:
    """Return generic values of many sizes, none of them 0, in the whole shape of a parameter."""
    if not parameter.is_floating_point():
        return parameter.detach()
    sizes = 2.0 ** (torch.rand(_TABLE, device="cpu") * 14 - 10)
    values = sizes * (torch.randint(2, (_TABLE,), device="cpu") * 2 - 1)
    tiled = _tile(values, parameter.shape)
    return _widen(tiled.to(parameter.device, parameter.dtype))


def _tile(table: Tensor, shape: torch.Size) -> Tensor:
    """Return a tensor that is filled from a table, again and again; drawing takes much longer."""
    return table.repeat(-(-shape.numel() // len(table)))[: shape.numel()].view(shape)


def _widen(values: Tensor) -> Tensor:
    """Return values in single precision if they are narrower: a trial must not overflow."""
    return values.float() if values.dtype in _NARROW else values

"""Removal of zero channels: a smaller module that computes the same."""

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_prune.channels.attention import SlimMultiheadAttention, slim_attention
from lightning_prune.channels.coupling import (
    ChannelPlace,
    CoupledChannels,
    Coupling,
    couple,
    undisturbed,
    with_two_samples,
)
from lightning_prune.channels.labels import NO_CHANNEL
from lightning_prune.models.calls import as_call, example_of
from lightning_prune.models.names import named_modules, named_tensors, plain_name

Shrunk = TypeVar("Shrunk", bound=nn.Module)

TOLERANCE = 1e-5
_BATCHES = 3
_TRIES = 16

Removal = Mapping[int, Tensor]
"""For the index of a group, which of its channels go; bool, one for each."""
Numbers = list[tuple[str, str, int]]
"""What an attribute of a module becomes: the module's name, the attribute's, and its value."""


def shrink(module: Shrunk, example: Any = None) -> Shrunk:
    r"""Return a copy of a module without the channels that are zero wherever they lie.

    A channel is removed if all that is stored for it is 0: the row that makes it, its bias, the
    scale and shift of its normalisation and the columns that read it, as `ChannelPattern` leaves
    them. Before the copy is returned, its outputs are compared with those of the module on random
    batches, in evaluation and in training mode (without dropout):

    .. math:: \max |y' - y| \le 10^{-5} \max |y|

    The copy is of the same class and can be trained, compiled, exported and pruned again. Since
    its shapes are new, save it by `shrunk_state` or by ``torch.export.save``.

    Args:
        module: What was pruned; left as it is.
        example: What its ``forward`` takes: a tensor, a tuple of arguments or a dict of named ones;
            by default its ``example_input_array``.

    Raises:
        ValueError: If there is no example, or the module cannot be traced with it.
        RuntimeError: If the copy computes something else, naming the channels because of which.

    Examples:
        >>> module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with torch.no_grad():
        ...     for zero in (module[0].weight[1], module[0].bias[1], module[2].weight[:, 1]):
        ...         _ = zero.zero_()
        >>> shrink(module, torch.randn(8, 4))[0]
        Linear(in_features=4, out_features=2, bias=True)
    """
    example = example_of(module, example)
    coupling = couple(module, example)
    removal = _zero_channels(module, coupling)
    reference = _Reference(module, example, _BATCHES)
    smaller, problems = _checked(module, reference, coupling, removal)
    if smaller is None:
        raise RuntimeError(
            "need a module that computes the same without its zero channels, got "
            + "; ".join(f"'{coupling.groups[i].producers[0]}' ({why})" for i, why in problems)
        )
    return smaller


def why_not_removable(
    module: nn.Module, example: Any, coupling: Coupling, candidates: Sequence[int]
) -> dict[int, str]:
    """Try on copies whether channels can be removed, and say why not where they cannot.

    Args:
        module: Left as it is; its channels need not be zero.
        example: What its ``forward`` takes.
        coupling: Its channels.
        candidates: Indices of the groups to try.

    Returns:
        A reason for each group that must stay dense, by its index.
    """
    removal = {index: _one_of(coupling.groups[index]) for index in candidates}
    masked = copy.deepcopy(module)
    tensors = named_tensors(masked)
    with torch.no_grad():
        for index, gone in removal.items():
            for its in coupling.groups[index].places:
                if isinstance(tensors[its.name], nn.Parameter):
                    _rows(tensors[its.name], its)[_is_gone(its, gone)] = 0.0
    _, problems = _checked(masked, _Reference(masked, example, 1), coupling, removal)
    return dict(problems)


def shrunk_state(module: nn.Module) -> dict[str, Any]:
    """Return the weights of a module with what `adopt` needs to load them into a dense instance.

    It holds tensors, numbers and strings, so that it loads with ``weights_only=True``.
    """
    return {
        "state_dict": module.state_dict(),
        "shrunk_attributes": {
            plain_name(name): numbers
            for name, child in module.named_modules()
            if any(True for _ in child.parameters()) and (numbers := _numbers(child))
        },
    }


def adopt(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a module the shapes and the weights of a shrunk one of the same class.

    Args:
        module: A new instance, as its constructor makes it.
        state: What `shrunk_state` returned.

    Raises:
        ValueError: If the weights are those of another architecture.
    """
    tensors = named_tensors(module)
    weights = {plain_name(name): tensor for name, tensor in state["state_dict"].items()}
    persistent = {plain_name(name) for name in module.state_dict()}
    if foreign := sorted(set(weights) ^ persistent):
        raise ValueError(
            "need the state of a module of the same class, got one that differs in "
            + ", ".join(f"'{name}'" for name in foreign[:6])
        )
    _replace(
        module,
        {
            name: tensors[name].new_empty(weight.shape)
            for name, weight in weights.items()
            if name in tensors and tensors[name].shape != weight.shape
        },
    )
    slim_attention(module)
    children = named_modules(module)
    for name, numbers in state["shrunk_attributes"].items():
        for attribute, number in numbers.items():
            if getattr(children[name], attribute, number) != number:
                setattr(children[name], attribute, number)
    module.load_state_dict(
        {raw: weights[plain_name(raw)] for raw in module.state_dict()}, strict=True
    )


# -- removal -------------------------------------------------------------------------------------


def _zero_channels(module: nn.Module, coupling: Coupling) -> Removal:
    """Return which channels are zero wherever they lie; of each group at least one stays."""
    tensors = named_tensors(module)
    removal: dict[int, Tensor] = {}
    for index, group in enumerate(coupling.groups):
        if group.why_dense is not None:
            continue
        gone = torch.ones(group.size, dtype=torch.bool)
        for its in group.places:
            if isinstance(tensors[its.name], nn.Parameter):
                rows = _rows(tensors[its.name], its)
                alive = (rows != 0).reshape(len(rows), -1).any(1).cpu()
                gone[its.channel_of_index[(its.channel_of_index >= 0) & alive]] = False
        if gone.all():
            gone[0] = False
        if gone.any():
            removal[index] = gone
    return removal


def _one_of(group: CoupledChannels) -> Tensor:
    """Return that one channel goes, in the middle, so that no end is special."""
    gone = torch.zeros(group.size, dtype=torch.bool)
    gone[group.size // 2] = True
    return gone


def _removed(module: Shrunk, coupling: Coupling, removal: Removal, numbers: Numbers) -> Shrunk:
    """Return a copy without those channels.

    Args:
        module: Left as it is.
        coupling: Its channels.
        removal: Which go.
        numbers: What becomes of the numbers that its modules' code counts on.
    """
    smaller = copy.deepcopy(module)
    kept: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for index, gone in removal.items():
        for its in coupling.groups[index].places:
            stays = kept[its.name].get(
                its.axis, torch.ones_like(its.channel_of_index, dtype=torch.bool)
            )
            kept[its.name][its.axis] = stays & ~_is_gone(its, gone)
    tensors = {
        name: tensor.detach() for name, tensor in named_tensors(smaller).items() if name in kept
    }
    for name, axes in kept.items():
        for axis, stays in axes.items():
            indices = stays.nonzero().flatten().to(tensors[name].device)
            tensors[name] = tensors[name].index_select(axis, indices)
    _replace(smaller, tensors)
    slim_attention(smaller)
    children = dict(smaller.named_modules())
    for name, attribute, number in numbers:
        setattr(children[name], attribute, number)
    for child, original in zip(smaller.modules(), module.modules(), strict=True):
        _fit(child, original)
    return smaller


def _replace(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of other shapes in the place of parameters and buffers, wherever they hang."""
    named = named_tensors(module)
    replacements: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        old, new = named[name], tensor.contiguous()
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        replacements[id(old)] = new
    for child in module.modules():
        for registered in (child._parameters, child._buffers):
            for attribute, value in list(registered.items()):
                if id(value) in replacements:
                    registered[attribute] = replacements[id(value)]  # type: ignore[assignment]


def _fit(child: nn.Module, original: nn.Module) -> None:
    """Let a layer of torch say how large it is now."""
    weight = getattr(child, "weight", None)
    before = getattr(original, "weight", None)
    if not isinstance(weight, Tensor) or not isinstance(before, Tensor):
        return
    if isinstance(child, _ConvNd):
        if weight.shape[0] != before.shape[0] and child.groups == child.in_channels > 1:
            child.groups = child.groups * weight.shape[0] // before.shape[0]
        first, second = weight.shape[0], weight.shape[1] * child.groups
        inputs, outputs = (
            (first, second) if isinstance(child, _ConvTransposeNd) else (second, first)
        )
        child.in_channels, child.out_channels = inputs, outputs
    elif isinstance(child, nn.Linear):
        child.out_features, child.in_features = weight.shape
    elif isinstance(child, nn.modules.batchnorm._NormBase):
        child.num_features = len(weight)
    elif isinstance(child, nn.GroupNorm):
        child.num_groups = child.num_groups * len(weight) // child.num_channels
        child.num_channels = len(weight)
    elif isinstance(child, nn.Embedding):
        child.embedding_dim = weight.shape[1]
    elif isinstance(child, nn.PReLU):
        child.num_parameters = len(weight)
    elif type(child).__name__ == "Conv1D":  # of Hugging Face
        child.nx, child.nf = weight.shape  # type: ignore[assignment]


def _adaptations(module: nn.Module, coupling: Coupling, removal: Removal) -> Iterator[Numbers]:
    """Yield what may become of the numbers in the modules that cut channels into pieces.

    Such as the number of heads: the reshape would else make as many, but thinner ones. A number
    that is both a size which has changed and one which has not (as many heads as their size) is
    tried as either, the same in all modules of a class; in the end all stay.
    """
    removed = torch.cat([coupling.groups[i].labels[gone] for i, gone in removal.items()])
    sizes: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for cut in coupling.counted_axes:
        is_gone = (torch.isin(cut.labels, removed) | (cut.labels == NO_CHANNEL)).all(1)
        is_gone &= (cut.labels != NO_CHANNEL).any(1)
        sizes[cut.module][len(is_gone)].add(len(is_gone) - int(is_gone.sum()))
    children = dict(module.named_modules())
    certain: Numbers = []
    doubtful: dict[tuple[type[nn.Module], str], Numbers] = defaultdict(list)
    for name, by_size in sizes.items():
        child = children[name]
        if isinstance(child, nn.MultiheadAttention | SlimMultiheadAttention):
            continue  # what replaces it reads them off its weights
        for attribute, value in _numbers(child).items():
            changed = by_size.get(value, {value}) - {value}
            if len(changed) == 1:
                is_certain = value not in by_size[value]
                kind = certain if is_certain else doubtful[type(child), attribute]
                kind.append((name, attribute, next(iter(changed))))
    for chosen in itertools.islice(itertools.product((True, False), repeat=len(doubtful)), _TRIES):
        yield certain + [
            number
            for is_chosen, numbers in zip(chosen, doubtful.values(), strict=True)
            for number in numbers
            if is_chosen
        ]
    if certain or doubtful:
        yield []


def _numbers(child: nn.Module) -> dict[str, int]:
    return {name: value for name, value in vars(child).items() if type(value) is int}


# -- comparison ----------------------------------------------------------------------------------


class _Reference:
    """What a module computes without dropout, in both modes and in double precision.

    A mode in which the module itself cannot be called is left out; one whose code is for single
    precision only is called in its own.

    Args:
        module: Left as it is.
        example: What its ``forward`` takes.
        batches: On how many batches, the example and others like it.
    """

    def __init__(self, module: nn.Module, example: Any, batches: int) -> None:
        for dtype in (torch.float64, None):
            copied = copy.deepcopy(module).to(dtype)
            self._dtype, self._batches = dtype, _batches(example, dtype, batches)
            self._modes = [mode for mode in (False, True) if _runs(copied, self._batches[0], mode)]
            if self._modes:
                break
        self._expected = [_outputs(copied, *call) for call in self._calls()]

    def difference(self, other: nn.Module) -> float:
        """Return by how much another module's outputs differ, relative to the largest."""
        copied = copy.deepcopy(other).to(self._dtype)
        differences = [
            _difference(expected, found)
            for call, outputs in zip(self._calls(), self._expected, strict=True)
            for expected, found in zip(outputs, _outputs(copied, *call), strict=True)
        ]
        return max(differences, default=0.0)

    def _calls(self) -> Iterator[tuple[Any, bool]]:
        return itertools.product(self._batches, self._modes or [False])  # which then raises


def _checked(
    module: Shrunk, reference: _Reference, coupling: Coupling, removal: Removal
) -> tuple[Shrunk | None, list[tuple[int, str]]]:
    """Remove channels and compare; return the smaller module, or None and the groups to blame."""
    if not removal:
        return copy.deepcopy(module), []
    why = ""
    for numbers in _adaptations(module, coupling, removal):
        try:
            smaller = _removed(module, coupling, removal, numbers)
            difference = reference.difference(smaller)
        except Exception as error:  # whatever the model's own code raises
            why = why or f"forward fails without it: {type(error).__name__}: {_first_line(error)}"
            continue
        if difference <= TOLERANCE:
            return smaller, []
        why = why or f"outputs differ by {difference:.1e} without it"
    if len(removal) == 1:
        return None, [(next(iter(removal)), why)]
    indices = list(removal)
    problems: list[tuple[int, str]] = []
    for half in (indices[: len(indices) // 2], indices[len(indices) // 2 :]):
        problems += _checked(module, reference, coupling, {i: removal[i] for i in half})[1]
    return None, problems or [(index, why) for index in indices]


def _runs(module: nn.Module, batch: Any, training: bool) -> bool:
    try:
        _outputs(module, batch, training)
    except Exception:  # whatever the model's own code raises
        return False
    return True


def _outputs(module: nn.Module, batch: Any, training: bool) -> list[Tensor]:
    """Return the tensors that a module makes; what it keeps of the batch is forgotten."""
    args, kwargs = as_call(module, batch)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.train(training)
    with torch.no_grad(), undisturbed(module), _WithoutDropout():
        torch.manual_seed(0)
        try:
            return [x for x in tree_leaves(module(*args, **kwargs)) if isinstance(x, Tensor)]
        finally:
            for name, buffer in module.named_buffers():
                if name in before:
                    buffer.copy_(before[name])


def _difference(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        raise ValueError(f"an output of {tuple(expected.shape)} becomes {tuple(found.shape)}")
    if expected.numel() == 0:
        return 0.0
    largest = float(expected.double().abs().max())
    difference = float((expected.double() - found.double()).abs().max())
    return difference / largest if largest else difference


def _batches(example: Any, dtype: torch.dtype | None, number: int) -> list[Any]:
    """Return the example and others like it, floating-point tensors in the given precision."""
    generator = torch.Generator().manual_seed(0)

    def other(value: Tensor) -> Tensor:
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            return noise.to(value.device, value.dtype)
        order = torch.randperm(value.numel(), generator=generator).to(value.device)
        return value.flatten()[order].view(value.shape)

    def converted(value: Tensor) -> Tensor:
        return value.to(dtype) if dtype and value.is_floating_point() else value

    first = tree_map_only(Tensor, converted, with_two_samples(example))
    return [first, *(tree_map_only(Tensor, other, first) for _ in range(number - 1))]


class _WithoutDropout(TorchFunctionMode):
    """Makes dropout pass on what it is given, also where it is called as a function."""

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


# -- tensors -------------------------------------------------------------------------------------


def _rows(tensor: Tensor, its: ChannelPlace) -> Tensor:
    return tensor.detach().movedim(its.axis, 0)


def _is_gone(its: ChannelPlace, gone: Tensor) -> Tensor:
    """Return which indices of an axis belong to channels that go."""
    return (its.channel_of_index >= 0) & gone[its.channel_of_index.clamp(min=0)]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]

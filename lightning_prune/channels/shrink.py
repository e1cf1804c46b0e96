"""Modules without their zero channels: made and checked."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.channels.branch_removal import leave_out_zero_branches
from lightning_prune.channels.coupling import ChannelPlace, CoupledChannels, Coupling, couple
from lightning_prune.channels.numbers import Removal
from lightning_prune.channels.removal import Smaller
from lightning_prune.channels.statistics import measure_statistics
from lightning_prune.channels.trial import Trial, try_with_generic_weights
from lightning_prune.models.calls import Call, make_call
from lightning_prune.models.comparison import Reference
from lightning_prune.models.compiled import copy_module, unwrap_compiled
from lightning_prune.models.names import named_parameters, named_tensors
from lightning_prune.models.progress import show_progress
from lightning_prune.tensors.shards import refuse_shards

_BATCHES = 3


@check_arguments
def shrink(
    module: Smaller,
    example: Any = None,
    *,
    statistics: Iterable[Any] | None = None,
    progress: bool = True,
) -> Smaller:
    r"""Return a copy of a module without the channels and residual branches that are zero.

    A channel is removed if all that is stored for it is 0: the row that makes it, its bias, the
    scale and shift of its normalization and the columns that read it, as `ChannelPattern` leaves
    them. A residual branch is left out if all its parameters are 0, as `BranchPattern` leaves them.
    Then modules without weights take the places of its modules. Before the copy is returned, its
    outputs are compared with those of the module on random batches, in evaluation and in training
    mode (without dropout):

    .. math:: \max |y' - y| \le 10^{-5} \max |y|

    The same is tried before with random weights, since trained weights can hide a difference. A
    number in the code of the module, such as a number of heads, changes only if the outputs show
    that it must. Channels without which the outputs differ stay. A warning names them with the
    reasons, and so does the attribute ``zero_channels_left`` of the copy: a dict of reasons by the
    names of the weights that make the channels.

    The copy is of the same class and can be trained, compiled, exported and pruned again. Since
    its shapes are new, save it by `shrunk_state` or by ``torch.export.save``.

    Args:
        module: The pruned module; left as it is.
        example: The arguments of ``forward``: a tensor, a tuple of arguments or a dict of named
            ones; by default ``module.example_input_array``.
        statistics: Batches, such as a ``DataLoader``, from which batch normalizations in the copy
            get new running means and variances after the comparison, as a module needs that was not
            trained after pruning. All of them are read: ``itertools.islice(loader, 16)`` is enough.
            ``forward`` gets as many items of a tuple or list as ``example`` has arguments, so
            the images of ``(images, labels)``, or the names of a dict that ``example`` has. Where
            several processes run, each calls this, and the mean is over the batches of all. By
            default the statistics stay.
        progress: Whether to show a progress bar in a terminal.

    Raises:
        ValueError: If there is no example, the module cannot be traced with it, ``statistics`` has
            no batch, or a batch without the arguments, or a parameter is sharded.

    Examples:
        >>> module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with torch.no_grad():
        ...     for zero in (module[0].weight[1], module[0].bias[1], module[2].weight[:, 1]):
        ...         _ = zero.zero_()
        >>> smaller = shrink(module, torch.randn(8, 4))
        >>> smaller[0], smaller.zero_channels_left
        (Linear(in_features=4, out_features=2, bias=True), {})
    """
    remedy = "load a checkpoint of it into the plain module"
    refuse_shards(named_parameters(module), wanted="shrink", remedy=remedy)
    call = make_call(module, example)
    with show_progress(progress):
        smaller = _remove_zeros(module, call)
        if statistics is not None:
            measure_statistics(smaller, statistics, call)
    return smaller


def _remove_zeros(module: Smaller, call: Call) -> Smaller:
    """Return the smaller copy, whose outputs have been compared."""
    module, left = leave_out_zero_branches(module, call, _BATCHES)
    coupling = couple(module, call)
    removal = _find_zero_channels(module, coupling)
    if not removal:
        return _record(copy_module(module), left)
    tried = try_with_generic_weights(module, call, coupling, removal)
    tried.drop_idle_numbers()
    removal = {index: removal[index] for index in tried.accepted}
    reference = Reference(module, call, _BATCHES)
    checked = Trial(module, reference, coupling, removal, known=tried.reading)
    refused = tried.refused | checked.refused
    left |= {coupling.groups[index].producers[0]: refused[index] for index in sorted(refused)}
    return _record(checked.remove(), left)


def find_unremovable(
    module: nn.Module, example: Any, coupling: Coupling, candidates: Sequence[int]
) -> dict[int, str]:
    """Try on copies with generic weights whether channels can be removed.

    Args:
        module: Left as it is; its channels need not be zero.
        example: The arguments of ``forward``.
        coupling: The channels of the module.
        candidates: Indices of the groups to try. Those that are not returned can be removed
            together.

    Returns:
        For the index of each group that must stay dense, the reason.
    """
    removal = {index: _choose_channel(coupling.groups[index]) for index in candidates}
    if not removal:
        return {}
    return try_with_generic_weights(module, make_call(module, example), coupling, removal).refused


def _find_zero_channels(module: nn.Module, coupling: Coupling) -> Removal:
    """Return the channels that are zero wherever they lie; of each group at least one stays."""
    tensors = named_tensors(module)
    removal: dict[int, Tensor] = {}
    for index, group in enumerate(coupling.groups):
        if group.why_dense is not None:
            continue
        gone = torch.ones(group.size, dtype=torch.bool, device="cpu")
        for part in group.places:
            if isinstance(tensors[part.name], nn.Parameter):
                rows = _rows(tensors[part.name], part)
                alive = (rows != 0).reshape(len(rows), -1).any(1).cpu()
                gone[part.channel_of_index[(part.channel_of_index >= 0) & alive]] = False
        if gone.all():
            gone[0] = False
        if gone.any():
            removal[index] = gone
    return removal


def _choose_channel(group: CoupledChannels) -> Tensor:
    """Return that a single channel goes, in the middle, so that no end is special."""
    gone = torch.zeros(group.size, dtype=torch.bool, device="cpu")
    gone[group.size // 2] = True
    return gone


def _record(smaller: Smaller, left: dict[str, str]) -> Smaller:
    """Note the zero channels that are left in a module on the module itself."""
    if left:
        warnings.warn(_describe_left(left), stacklevel=5)  # over the decorator
    unwrap_compiled(smaller).zero_channels_left = left  # type: ignore[assignment]
    return smaller


def _describe_left(left: Mapping[str, str]) -> str:
    reasons = "; ".join(f"'{name}' ({why})" for name, why in left.items())
    return f"zero channels stay in the smaller module, since it needs them: {reasons}"


def _rows(tensor: Tensor, part: ChannelPlace) -> Tensor:
    return tensor.detach().movedim(part.axis, 0)

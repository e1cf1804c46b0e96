"""The state of a training under pruning, as a table."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from rich.text import Text

from lightning_prune.engine.groups import Group
from lightning_prune.engine.readings import Readings
from lightning_prune.models.name_groups import group_names
from lightning_prune.models.names import list_names
from lightning_prune.models.prunable import ADAPTER
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.tables.sheet import Sheet
from lightning_prune.tables.table import Cell, Column, Table

_LINES, _ROWS, _DIGITS = 30, 10, 4
_LISTED_NAMES = 6
_SUFFIX = ".weight"
_NUMBERS = (Column(heading="kept"), Column(heading="sparsity"), Column(heading="final"))
_TENSOR_COLUMNS = (
    Column(heading="tensor", align="left"),
    Column(heading="shape", align="left"),
    Column(heading="weights"),
    *_NUMBERS,
)
_CHANNEL_COLUMNS = (
    Column(heading="channels of", align="left"),
    Column(heading="tensors"),
    Column(heading="channels"),
    *_NUMBERS,
)
_BRANCH_COLUMNS = (
    Column(heading="branches like that of", align="left"),
    Column(heading="tensors"),
    Column(heading="branches"),
    *_NUMBERS,
)


def describe(pruner: Readings) -> Sheet:
    """Return the recipe, and the table of the tensors once they are chosen.

    Args:
        pruner: An engine, attached or not.
    """
    if not pruner.groups:
        return Sheet([pruner.recipe.table(), Text("The tensors are chosen when training starts.")])
    return Sheet([pruner.recipe.table(), pruning_table(pruner, "Sparsity", is_short=True)])


def pruning_table(pruner: Readings, title: str = "", *, is_short: bool = False) -> Table:
    """Return a row for each tensor or group of channels; the notes say what stays dense and why.

    Args:
        pruner: An attached engine.
        title: The line above the table.
        is_short: Whether rows of equal numbers are one if the names differ in numbers only. Many
            rows of equal shapes are one, too. Such a row counts the tensors together.
    """
    rows = _shorten(pruner) if is_short else [(each.name, [each]) for each in pruner.groups]
    is_grouped = len(rows) < len(pruner.groups)
    first, *others = _choose_columns(pruner.recipe.pattern)
    if is_grouped and all(label.endswith(_SUFFIX) for label, _ in rows):
        rows = [(label.removesuffix(_SUFFIX), groups) for label, groups in rows]
        first = replace(first, heading=f"{first.heading} ({_SUFFIX})")
    return Table(
        title=title,
        columns=[first, *others],
        rows=[*(_make_row(pruner, label, groups) for label, groups in rows), _total_row(pruner)],
        has_total=True,
        notes=_list_notes(pruner, is_grouped=is_grouped),
        most_lines=_LINES if is_short else None,
    )


def _choose_columns(pattern: Pattern) -> tuple[Column, ...]:
    if pattern.spans_branches:
        return _BRANCH_COLUMNS
    return _CHANNEL_COLUMNS if pattern.couples_tensors else _TENSOR_COLUMNS


def _list_notes(pruner: Readings, *, is_grouped: bool) -> list[str]:
    grouped = ["a row with braces counts its tensors together; table: full lists each"]
    return [
        *(grouped if is_grouped else []),
        *_model_notes(pruner),
        *_budget_notes(pruner),
        *_frozen_notes(pruner),
        *_floor_notes(pruner),
        *_dense_notes(pruner, at_most=1 if is_grouped else _LISTED_NAMES),
    ]


def _shorten(pruner: Readings) -> list[tuple[str, Sequence[Group]]]:
    """Return the rows of the short table: of equal numbers, or of equal shapes if they are many."""

    def numbers(group: Group) -> tuple[object, ...]:
        final = pruner.plan[group.name]
        sparsities = [round(each, _DIGITS) for each in (1 - group.kept / group.size, final or 0)]
        return _members_or_shape(pruner, group), group.size, *sparsities

    rows = group_names(pruner.groups, _name, numbers)
    if len(rows) > _ROWS:
        rows = group_names(pruner.groups, _name, partial(_members_or_shape, pruner))
    return [(row.label, row.items) for row in rows]


def _name(group: Group) -> str:
    return group.name


def _make_row(pruner: Readings, label: str, groups: Sequence[Group]) -> list[Cell]:
    """Return the row of groups, counted together."""
    size, kept = sum(group.size for group in groups), sum(group.kept for group in groups)
    planned = [pruner.plan[group.name] for group in groups]
    final = sum(group.size * (each or 0) for group, each in zip(groups, planned, strict=True))
    return [
        label,
        _members_or_shape(pruner, groups[0]),
        f"{size:,}",
        f"{kept:,}",
        f"{1 - kept / size:.{_DIGITS}f}",
        "pooled" if None in planned else f"{final / size:.{_DIGITS}f}",
    ]


def _members_or_shape(pruner: Readings, group: Group) -> str:
    if pruner.recipe.pattern.couples_tensors:
        return str(len(group.members))
    return " x ".join(map(str, group.members[0].parameter.shape))


def _total_row(pruner: Readings) -> list[Cell]:
    return [
        "all",
        str(len(pruner.tensors)) if pruner.recipe.pattern.couples_tensors else "",
        f"{sum(group.size for group in pruner.groups):,}",
        f"{sum(group.kept for group in pruner.groups):,}",
        f"{pruner.sparsity:.4f}",
        f"{_final_sparsity(pruner):.4f}",
    ]


def _final_sparsity(pruner: Readings) -> float:
    """Return the final sparsity of all groups; of channels, after rounding where that is known."""
    planned = [pruner.plan[group.name] for group in pruner.groups]
    if not pruner.recipe.pattern.couples_tensors or not planned or None in planned:
        return pruner.final_sparsity
    pruned = sum(
        group.size * final for group, final in zip(pruner.groups, planned, strict=True) if final
    )
    return pruned / sum(group.size for group in pruner.groups)


def _model_notes(pruner: Readings) -> list[str]:
    """Return a line on the whole model: its sparsity, or what removing the channels takes away."""
    now, total = pruner.parameter_sparsity, sum(pruner.sizes.values())
    if pruner.recipe.pattern.couples_tensors:
        atoms = "branches" if pruner.recipe.pattern.spans_branches else "channels"
        removed = f"removing the pruned {atoms} takes away {now:.4f} of all parameters"
        return [removed] if now else []
    final = pruner.final_sparsity * sum(group.size for group in pruner.groups) / max(total, 1)
    return [f"whole model: {total:,} weights, sparsity {now:.4f}, final {final:.4f}"]


def _budget_notes(pruner: Readings) -> list[str]:
    """Return a line for each budget: the cost of the dense model, at most, and now."""
    notes = [expense.describe() for expense in pruner.spending]
    binding = pruner.spending.binding
    if binding is not None and len(notes) > 1:
        notes.append(f"the tightest budget is {binding.limit.budget.describe()}")
    return notes


def _frozen_notes(pruner: Readings) -> list[str]:
    """Return a line on weights that are pruned without training, and on adapters beside them."""
    frozen = [tensor.name for tensor in pruner.tensors if not tensor.is_trained]
    if not frozen:
        return []
    notes = [f"pruned without training: {list_names(frozen, at_most=_LISTED_NAMES)}"]
    if ADAPTER in pruner.dense.values():
        notes.append(
            "merging the adapters into pruned weights would fill the zeros; merge_sparse of "
            "lightning_prune.integrations.peft keeps them"
        )
    return notes


def _floor_notes(pruner: Readings) -> list[str]:
    """Return lines on the atoms that must stay, and on the sparsity that they allow."""
    held = [group.name for group in pruner.groups if group.rows > 1]
    names, reached = list_names(held, at_most=_LISTED_NAMES), pruner.final_sparsity
    notes = (
        [f"each row keeps an atom, since the model divides by the norm: {names}"] if held else []
    )
    size = sum(group.size for group in pruner.groups)
    asked = sum(group.sparsity * group.size for group in pruner.groups)
    if size and reached < asked / size - 1e-9 and not pruner.spending:
        notes.append(
            f"atoms that must stay hold the final sparsity at {reached:.4f}, not {asked / size:.4f}"
        )
    return notes


def _dense_notes(pruner: Readings, *, at_most: int) -> list[str]:
    """Return a line for each reason why parameters stay dense, with the share of the model."""
    names_by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in pruner.dense.items():
        names_by_reason[reason].append(name)
    total = sum(pruner.sizes.values())
    notes = []
    for reason, names in names_by_reason.items():
        share = sum(pruner.sizes.get(name, 0) for name in names) / max(total, 1)
        listed = _list(names, at_most=at_most)
        notes.append(f"dense ({reason}): {listed}; {share:.4f} of all weights")
    return notes


def _list(names: Sequence[str], at_most: int) -> str:
    """Return the first names in words, those that differ in numbers as one; count the others."""
    groups = group_names(names, name=str, kind=lambda _: None)
    rest = sum(len(group.items) for group in groups[at_most:])
    listed = ", ".join(group.label for group in groups[:at_most])
    return f"{listed} and {rest} more" if rest else listed

"""The state of a `Pruner`, and a validation before and after, as tables."""

from collections import defaultdict
from collections.abc import Mapping

from lightning_prune.engine.groups import Group
from lightning_prune.engine.pruner import Pruner
from lightning_prune.models.names import list_names
from lightning_prune.models.prunable import ADAPTER
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.reporting.tables import Cell, Column, Table

_LISTED_NAMES = 6
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


def pruning_table(pruner: Pruner, title: str = "") -> Table:
    """Return a row for each tensor or group of channels; the notes say what stays dense and why.

    Args:
        pruner: An attached engine.
        title: The line above the table.
    """
    return Table(
        title=title,
        columns=_choose_columns(pruner.recipe.pattern),
        rows=[*(_group_row(pruner, group) for group in pruner.groups), _total_row(pruner)],
        has_total=True,
        notes=[
            *_model_notes(pruner),
            *_budget_notes(pruner),
            *_frozen_notes(pruner),
            *_floor_notes(pruner),
            *_dense_notes(pruner),
        ],
    )


def change_table(before: Mapping[str, float], after: Mapping[str, float], label: str) -> Table:
    """Return the metrics of two validations side by side.

    Args:
        before: The metrics of the first validation, by name.
        after: The metrics of the second validation, by name.
        label: The heading above the metrics of the second validation.
    """
    headings = ("before", label, "change")
    rows: list[list[Cell]] = []
    for name, value in before.items():
        changed = after.get(name, float("nan"))
        rows.append([name, f"{value:.4f}", f"{changed:.4f}", f"{changed - value:+.4f}"])
    return Table(
        title="Validated before and after",
        columns=[
            Column(heading="metric", align="left"),
            *(Column(heading=heading) for heading in headings),
        ],
        rows=rows,
    )


def _choose_columns(pattern: Pattern) -> tuple[Column, ...]:
    if pattern.spans_branches:
        return _BRANCH_COLUMNS
    return _CHANNEL_COLUMNS if pattern.couples_tensors else _TENSOR_COLUMNS


def _group_row(pruner: Pruner, group: Group) -> list[Cell]:
    final = pruner.plan[group.name]
    return [
        group.name,
        _members_or_shape(pruner, group),
        f"{group.size:,}",
        f"{group.kept:,}",
        f"{1 - group.kept / group.size:.4f}",
        "pooled" if final is None else f"{final:.4f}",
    ]


def _members_or_shape(pruner: Pruner, group: Group) -> str:
    if pruner.recipe.pattern.couples_tensors:
        return str(len(group.members))
    return " x ".join(map(str, group.members[0].parameter.shape))


def _total_row(pruner: Pruner) -> list[Cell]:
    return [
        "all",
        str(len(pruner.tensors)) if pruner.recipe.pattern.couples_tensors else "",
        f"{sum(group.size for group in pruner.groups):,}",
        f"{sum(group.kept for group in pruner.groups):,}",
        f"{pruner.sparsity:.4f}",
        f"{_final_sparsity(pruner):.4f}",
    ]


def _final_sparsity(pruner: Pruner) -> float:
    """Return the final sparsity of all groups; of channels, after rounding where that is known."""
    planned = [pruner.plan[group.name] for group in pruner.groups]
    if not pruner.recipe.pattern.couples_tensors or not planned or None in planned:
        return pruner.final_sparsity
    pruned = sum(
        group.size * final for group, final in zip(pruner.groups, planned, strict=True) if final
    )
    return pruned / sum(group.size for group in pruner.groups)


def _model_notes(pruner: Pruner) -> list[str]:
    """Return a line on the whole model: its sparsity, or what removing the channels takes away."""
    now, total = pruner.parameter_sparsity, sum(pruner.sizes.values())
    if pruner.recipe.pattern.couples_tensors:
        atoms = "branches" if pruner.recipe.pattern.spans_branches else "channels"
        removed = f"removing the pruned {atoms} takes away {now:.4f} of all parameters"
        return [removed] if now else []
    final = pruner.final_sparsity * sum(group.size for group in pruner.groups) / max(total, 1)
    return [f"whole model: {total:,} weights, sparsity {now:.4f}, final {final:.4f}"]


def _budget_notes(pruner: Pruner) -> list[str]:
    """Return a line for each budget: the cost of the dense model, at most, and now."""
    notes = [expense.describe() for expense in pruner.spending]
    binding = pruner.spending.binding
    if binding is not None and len(notes) > 1:
        notes.append(f"the tightest budget is {binding.limit.budget.describe()}")
    return notes


def _frozen_notes(pruner: Pruner) -> list[str]:
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


def _floor_notes(pruner: Pruner) -> list[str]:
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


def _dense_notes(pruner: Pruner) -> list[str]:
    """Return a line for each reason why parameters stay dense, with the share of the model."""
    names_by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in pruner.dense.items():
        names_by_reason[reason].append(name)
    total = sum(pruner.sizes.values())
    notes = []
    for reason, names in names_by_reason.items():
        share = sum(pruner.sizes.get(name, 0) for name in names) / max(total, 1)
        listed = list_names(names, at_most=_LISTED_NAMES)
        notes.append(f"dense ({reason}): {listed}; {share:.4f} of all weights")
    return notes

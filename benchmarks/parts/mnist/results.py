"""The tables, the bars and the picture of `mnist.py`."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.kit.judging import Bar, summarize
from benchmarks.kit.recording import list_points, print_table
from benchmarks.parts.mnist.recipes import DENSE, RANDOM, ROWS

MARKERS = "osD^vPX*<>dhp8"
Key = tuple[str, float]  # recipe and sparsity
Accuracies = Mapping[Key, Sequence[float]]


class Run(NamedTuple):
    """A training and the result."""

    recipe: str
    sparsity: float
    seed: int
    epochs: int
    accuracy: float
    seconds: float


def group_accuracies(runs: Sequence[Run]) -> Accuracies:
    """Return the accuracies of all seeds, by recipe and sparsity."""
    accuracies: dict[Key, list[float]] = {}
    for run in runs:
        accuracies.setdefault((run.recipe, run.sparsity), []).append(run.accuracy)
    return accuracies


def set_bars(key: Key, accuracies: Accuracies) -> Iterator[Bar]:
    """Yield the bars of a recipe at a sparsity.

    Args:
        key: The recipe and the sparsity.
        accuracies: Those of all recipes; the static random mask sets a bar if it is there.
    """
    name, sparsity = key
    row, mean = ROWS[name], summarize(accuracies[key]).mean
    if sparsity in row.bars:
        yield Bar(name=f"{name} at {sparsity}", value=mean, least=row.bars[sparsity])
    if sparsity in row.above_random and (RANDOM, sparsity) in accuracies:
        least = summarize(accuracies[RANDOM, sparsity]).mean + row.above_random[sparsity]
        yield Bar(name=f"{name} at {sparsity}, beside {RANDOM}", value=mean, least=least)


def print_means(runs: Sequence[Run]) -> None:
    """Print a row for each recipe, with a column for each sparsity."""
    accuracies = group_accuracies(runs)
    sparsities = sorted({sparsity for _, sparsity in accuracies})
    rows = []
    for name in dict.fromkeys(name for name, _ in accuracies):
        cells = (accuracies.get((name, sparsity)) for sparsity in sparsities)
        rows.append((name, *(str(summarize(points)) if points else "" for points in cells)))
    print_table(("recipe", *(f"{sparsity:g}" for sparsity in sparsities)), rows)


def print_runs(runs: Sequence[Run]) -> list[Bar]:
    """Print a row for each recipe and sparsity, and return all bars."""
    accuracies = group_accuracies(runs)
    bars = {key: [*set_bars(key, accuracies)] for key in accuracies}
    seconds = {
        key: statistics.median(run.seconds for run in runs if run[:2] == key) for key in accuracies
    }
    print_table(
        ("recipe", "sparsity", "accuracy", "each seed", "by hand", "bar", "met", "seconds"),
        (
            (
                key[0],
                f"{key[1]}",
                str(summarize(points)),
                list_points(points),
                ROWS[key[0]].by_hand.get(key[1], ""),
                list_points(bar.least for bar in bars[key]),
                ("yes" if all(bar.is_met for bar in bars[key]) else "NO") if bars[key] else "",
                f"{seconds[key]:.1f}",
            )
            for key, points in accuracies.items()
        ),
    )
    return [bar for found in bars.values() for bar in found]


# Colors that can be told apart, most of them of the palette "Paired" of ColorBrewer.
COLORS = (
    *("#1f78b4", "#33a02c", "#e31a1c", "#ff7f00", "#6a3d9a", "#b15928"),
    *("#a6cee3", "#b2df8a", "#fb9a99", "#fdbf6f", "#cab2d6", "#17becf"),
    "#555555",
)


def draw_runs(runs: Sequence[Run], path: Path) -> None:
    """Draw the accuracy over the sparsity, with a curve for each recipe."""
    from matplotlib.figure import Figure

    accuracies = group_accuracies(runs)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=COLORS)
    if (DENSE, 0.0) in accuracies:
        mean = summarize(accuracies[DENSE, 0.0]).mean
        axes.axhline(mean, color="black", linestyle=":", label=f"dense: {mean:.2f}")
    sparsities = sorted({run.sparsity for run in runs if run.recipe != DENSE})
    names = [name for name in ROWS if name != DENSE]
    for marker, name in zip(MARKERS[: len(names)], names, strict=True):
        present = [sparsity for sparsity in sparsities if (name, sparsity) in accuracies]
        if present:
            kept = [1 - sparsity for sparsity in present]
            summaries = [summarize(accuracies[name, sparsity]) for sparsity in present]
            means, deviations = zip(*summaries, strict=True)
            style = {"marker": marker, "markersize": 5, "capsize": 3}
            axes.errorbar(kept, means, deviations, label=name, **style)
    axes.set(xscale="log", xlabel="sparsity", ylabel="test accuracy, points")
    axes.invert_xaxis()
    axes.set_xticks([1 - sparsity for sparsity in sparsities], map(str, sparsities))
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=120)

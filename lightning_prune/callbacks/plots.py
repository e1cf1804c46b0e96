"""Pictures of a training, for the loggers that show them."""

import importlib.util
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS, _COLUMNS = 60, 4


def refuse_missing_matplotlib(purpose: str, found: str, instead: str) -> None:
    """Raise ModuleNotFoundError if matplotlib is not installed.

    Args:
        purpose: Words for the picture.
        found: The argument that asks for the picture, with the value.
        instead: The argument with the value that asks for no picture.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            f"need matplotlib to draw {purpose}, got {found} without matplotlib; run "
            f"pip install 'lightning-prune[plots]', or set {instead}"
        )


def plot_quality(quality: str, name: str, curve: Sequence[tuple[float, float]]) -> "Figure":
    """Return a plot over the sparsity, or over a cost as a fraction of the dense cost.

    Args:
        quality: Name of the metric.
        name: Name of the sparsity or the cost.
        curve: Pairs of sparsity or cost, and metric.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*curve, strict=True), marker="o", markersize=4)
    axes.set(xlabel=name, ylabel=quality, title=f"{quality} over {name}", xlim=(0, 1))
    axes.grid(alpha=0.3)
    return figure


def plot_histograms(weights: Iterable[tuple[str, Tensor]]) -> "Figure":
    """Return a histogram for each tensor.

    Args:
        weights: Names and weights of at least one tensor.
    """
    from matplotlib.figure import Figure

    counts = [(name, np.histogram(values.cpu().numpy(), bins=_BINS)) for name, values in weights]
    rows = -(-len(counts) // _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 2 * rows), layout="constrained")
    places = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for place, (name, (heights, edges)) in zip(places, counts, strict=False):
        place.stairs(heights, edges, fill=True)
        place.set_title(name, fontsize="small")
    for place in places[len(counts) :]:
        place.remove()
    return figure

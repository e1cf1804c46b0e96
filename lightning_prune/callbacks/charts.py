"""Charts: which curves share a chart, so that no chart has more curves than colors."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from lightning_prune.engine.pruner import Pruner

Charts = Mapping[str, Mapping[str, float]]
"""The present values of the curves, by the tag of the chart and the name of the curve."""

_MOST_CURVES = 10  # the eye tells as many colors apart
_MOST_BESIDE = 3  # charts of layers beside the others
_BY_LAYER = "sparsity_by_layer"


def read_charts(pruner: Pruner) -> Charts:
    """Return the sparsity and the costs beside the targets, and the sparsity of each layer.

    Args:
        pruner: An attached engine.
    """
    charts = {"sparsity_and_target": _pair("sparsity", pruner.sparsity, pruner.sparsity_target)}
    for expense in pruner.spending:
        pair = _pair(expense.unit, expense.share, expense.target)
        charts[f"{expense.unit}_and_target"] = pair
    values = {group.name: 1 - group.kept / group.size for group in pruner.groups}
    for title, curves in divide_names(tuple(values)).items():
        charts[f"{_BY_LAYER}/{title}"] = {curve: values[name] for curve, name in curves.items()}
    return charts


def name_quality_chart(quality: str) -> str:
    """Return the tag of the chart of a metric beside the sparsity."""
    return f"{quality}_and_sparsity"


def arrange(tags: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the tags of charts by title, under the headings of a page.

    Many layers have a heading of their own, which the page opens on a click.

    Args:
        tags: The tags of all charts.

    Examples:
        >>> page = arrange(["sparsity_and_target", "sparsity_by_layer/net"])
        >>> list(page["pruning"])
        ['sparsity and target', 'sparsity by layer: net']
        >>> list(arrange([f"sparsity_by_layer/layers.{i}" for i in range(12)]))
        ['sparsity by layer']
    """
    layers = [tag for tag in tags if tag.startswith(f"{_BY_LAYER}/")]
    page: dict[str, dict[str, str]] = defaultdict(dict)
    for tag in tags:
        heading, _, title = tag.partition("/")
        heading = heading.replace("_", " ")
        if tag not in layers:
            page["pruning"][tag.replace("_and_", " and ")] = tag
        elif len(layers) <= _MOST_BESIDE:
            page["pruning"][f"{heading}: {title}"] = tag
        else:
            page[heading][title] = tag
    return dict(page)


@lru_cache(maxsize=8)  # the names are the same at each update
def divide_names(names: tuple[str, ...]) -> Mapping[str, Mapping[str, str]]:
    """Return the names of parameters in charts of few curves each, by title and curve.

    Layers of the same block share a chart. The blocks are those of the model, and become smaller
    until each has few curves. So curves have the same name in each block.

    Args:
        names: Qualified names of parameters.

    Examples:
        >>> divide_names(("net.0.weight", "net.2.weight"))
        {'net': {'net.0': 'net.0.weight', 'net.2': 'net.2.weight'}}
        >>> names = tuple(f"layers.{i}.{part}.weight" for i in (0, 1) for part in "abcdef")
        >>> list(divide_names(names)), list(divide_names(names)["layers.1"])
        (['layers.0', 'layers.1'], ['a', 'b', 'c', 'd', 'e', 'f'])
    """
    charts: dict[str, dict[str, str]] = {}
    for prefix, members in _divide(names, ""):
        title = prefix.removesuffix(".") or "model"
        number = sum(each.partition(" (")[0] == title for each in charts)
        charts[f"{title} ({number + 1})" if number else title] = {
            _name_curve(name, prefix): name for name in members
        }
    return charts


def _name_curve(name: str, prefix: str) -> str:
    """Return the name inside of the block; of a numbered layer with the name of the block."""
    curve = name.removeprefix(prefix).removesuffix(".weight")
    block = prefix.removesuffix(".").rpartition(".")[2]
    return f"{block}.{curve}" if curve.isdecimal() and block else curve


def _divide(names: Sequence[str], prefix: str) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield names that share a chart, with the prefix that they have in common."""
    blocks: dict[str, list[str]] = defaultdict(list)
    for name in names:
        blocks[name.removeprefix(prefix).partition(".")[0]].append(name)
    if len(blocks) == 1 and len(names) > 1:
        yield from _divide(names, f"{prefix}{next(iter(blocks))}.")
        return
    if len(names) <= _MOST_CURVES:
        yield prefix, names
        return
    single = [name for members in blocks.values() if len(members) == 1 for name in members]
    for start in range(0, len(single), _MOST_CURVES):
        yield prefix, single[start : start + _MOST_CURVES]
    for block, members in blocks.items():
        if len(members) > 1:
            yield from _divide(members, f"{prefix}{block}.")


def _pair(name: str, value: float, target: float) -> dict[str, float]:
    return {name: value, "target": target}

"""A report in words and tables: for a terminal, as Markdown, JSON and CSV."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_prune.reporting.latency import Latency, Spread

if TYPE_CHECKING:
    from lightning_prune.reporting.records import LayerReport, Report

Row = tuple[str, ...]

_SIZE = ("layer", "parameters", "non-zero", "sparsity", "pattern")
_WORK = ("layer", "MACs dense", "effective", "bytes", "zlib", "peak memory")
_LATENCY = ("runtime", "module", "median", "quartiles", "dense / pruned")
_TEXTS = ("layer", "pattern", "runtime", "module")
_LISTED_NAMES = 8
_CSV = (
    "name",
    "kind",
    "dense_parameters",
    "parameters",
    "nonzeros",
    "sparsity",
    "pattern",
    "dense_macs",
    "effective_macs",
    "unknown",
    "dense_bytes",
    "bytes",
    "compressed_bytes",
    "peak_bytes",
)


def terminal(report: "Report") -> RenderableType:
    """Return three tables and what follows from them."""
    shown = _shown(report)
    parts: list[RenderableType] = [
        Text(f"{report.model} on {report.example}", style="bold"),
        _table("What is left", _SIZE, [_size(*row) for row in shown]),
        _table("What it costs", _WORK, [_work(*row) for row in shown]),
    ]
    if report.latencies:
        parts.append(_table("What it takes", _LATENCY, _times(report), total=False))
    parts += [Text(line) for line in _findings(report)]
    parts += [Text(f"warning: {line}", style="yellow") for line in _warnings(report)]
    parts += [Text(f"note: {line}", style="dim") for line in report.notes]
    return Group(*parts)


def markdown(report: "Report") -> str:
    """Return the same for a page of text, what follows first."""
    shown = _shown(report)
    lines = _findings(report)
    lines += [f"**warning**: {line}" for line in _warnings(report)]
    lines += [f"note: {line}" for line in report.notes]
    parts = [
        f"**{report.model}** on {report.example}",
        "\n".join(f"- {line}" for line in lines),
        _markdown_table(_SIZE, [_size(*row) for row in shown]),
        _markdown_table(_WORK, [_work(*row) for row in shown]),
    ]
    if report.latencies:
        parts.append(_markdown_table(_LATENCY, _times(report)))
    return "\n\n".join(parts) + "\n"


def json_text(report: "Report") -> str:
    """Return all numbers, those that follow from others included."""
    values = dataclasses.asdict(report)
    values["total"] = dataclasses.asdict(report.total) | {"sparsity": report.total.sparsity}
    for row, layer in zip(values["layers"], report.layers, strict=True):
        row["sparsity"] = layer.sparsity
    for row, latency in zip(values["latencies"], report.latencies, strict=True):
        row["verdict"] = latency.verdict
    return json.dumps(values, indent=2) + "\n"


def csv_text(report: "Report") -> str:
    """Return a line a layer and a last one for all."""
    file = io.StringIO()
    writer = csv.DictWriter(file, _CSV, lineterminator="\n")
    writer.writeheader()
    for layer, name in [*((one, one.name) for one in report.layers), (report.total, "all")]:
        values = {column: getattr(layer, column) for column in _CSV}
        writer.writerow(values | {"name": name, "unknown": " ".join(layer.unknown)})
    return file.getvalue()


def _shown(report: "Report") -> list[tuple[str, "LayerReport"]]:
    """Return the layers with matrices, the others together, and all together, with their names."""
    large = [layer for layer in report.layers if layer.pattern or layer.dense_macs]
    small = [layer for layer in report.layers if layer not in large]
    rows = [(layer.name or f"({layer.kind})", layer) for layer in large]
    if small:
        others = dataclasses.replace(report, layers=tuple(small)).total
        peak = max(layer.peak_bytes for layer in small)
        name = f"{len(small)} without a matrix" if len(small) > 1 else small[0].name
        rows.append((name, dataclasses.replace(others, peak_bytes=peak)))
    return [*rows, ("all", report.total)]


def _size(name: str, layer: "LayerReport") -> Row:
    parameters = f"{layer.parameters:,}"
    if layer.dense_parameters != layer.parameters:
        parameters += f" of {layer.dense_parameters:,}"
    return (
        name,
        parameters,
        f"{layer.nonzeros:,}",
        f"{layer.sparsity:.4f}",
        layer.pattern,
    )


def _work(name: str, layer: "LayerReport") -> Row:
    unknown = " and more" if layer.unknown else ""
    return (
        name,
        f"{layer.dense_macs:,}{unknown}",
        f"{layer.effective_macs:,}{unknown}",
        _short(layer.bytes),
        _short(layer.compressed_bytes),
        _short(layer.peak_bytes),
    )


def _times(report: "Report") -> list[Row]:
    """Return two rows a runtime."""
    rows = []
    for one in report.latencies:
        ratio = f"{one.speedup:.2f} ({one.low:.2f} to {one.high:.2f})"
        rows.append((one.runtime, "dense", *_milliseconds(one.dense), ""))
        rows.append(("", "pruned", *_milliseconds(one.pruned), ratio))
    return rows


def _milliseconds(spread: Spread) -> Row:
    median, lower, upper = (
        f"{1000 * seconds:.3g}" for seconds in (spread.median, spread.lower, spread.upper)
    )
    return f"{median} ms", f"{lower} to {upper}"


def _findings(report: "Report") -> list[str]:
    """Return what the numbers say, in words."""
    total = report.total
    lines = [
        f"{report.sparsity:.4f} of the prunable weights are zero, {total.sparsity:.4f} of all "
        "parameters"
    ]
    if total.dense_parameters > total.parameters:
        ratio = total.dense_parameters / max(total.parameters, 1)
        lines.append(f"{ratio:.2f} times fewer parameters than dense")
    if total.compressed_bytes:
        ratio = total.dense_bytes / total.compressed_bytes
        lines.append(f"{ratio:.2f} times smaller on disk than dense, through zlib")
    if report.peak_bytes < report.dense_peak_bytes:
        ratio = report.dense_peak_bytes / report.peak_bytes
        lines.append(f"{ratio:.2f} times less memory for activations at the peak")
    lines += [_said(latency) for latency in report.latencies]
    if report.sparsity and any(one.verdict == "no faster" for one in report.latencies):
        lines.append(
            "zeros in place are multiplied like any other number; a kernel that skips them, or "
            "removed channels, would be faster"
        )
    return lines


def _said(latency: Latency) -> str:
    where = f"in {latency.runtime} ({latency.device}, "
    if latency.device == "cpu":
        where += f"{latency.threads} thread{'s' if latency.threads > 1 else ''}, "
    where += f"{latency.blocks} x {latency.calls} calls each, in turns)"
    if latency.verdict == "no faster":
        return f"no faster {where}"
    ratio = latency.speedup if latency.verdict == "faster" else 1 / latency.speedup
    return f"{ratio:.2f} times {latency.verdict} {where}"


def _warnings(report: "Report") -> list[str]:
    lines = []
    if report.emptied:
        lines.append(f"all weights are zero in {_listed(report.emptied)}")
    constant = [name for name in report.constant if name != "output"]
    if constant:
        lines.append(f"because of that the output is constant in {_listed(constant)}")
    if "output" in report.constant:
        lines.append("because of that the output of the model no longer depends on its input")
    return lines


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED_NAMES
    return ", ".join(names[:_LISTED_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _short(number: int) -> str:
    """Return a number of bytes in three digits.

    Examples:
        >>> _short(999), _short(12_345), _short(1_234_567)
        ('999 B', '12.3 kB', '1.23 MB')
    """
    value, unit = float(number), ""
    for bigger in ("k", "M", "G", "T"):
        if value < 999.5:
            break
        value, unit = value / 1000, bigger
    return f"{value:.3g} {unit}B"


def _table(title: str, columns: Row, rows: Sequence[Row], *, total: bool = True) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        text = column in _TEXTS
        table.add_column(column, justify="left" if text else "right", overflow="fold")
    for row in rows[:-1] if total else rows:
        table.add_row(*row)
    if total:
        table.add_section()
        table.add_row(*rows[-1], style="bold")
    return table


def _markdown_table(columns: Row, rows: Sequence[Row]) -> str:
    rule = tuple("---" if column in _TEXTS else "---:" for column in columns)
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rule, *rows))

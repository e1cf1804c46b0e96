"""The records of a report, as tables, sentences, Markdown, JSON and CSV."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.deploy.files import check_output_file, replace_files
from lightning_prune.models.names import list_names
from lightning_prune.reporting.latency import Latency, describe_latency, latency_table
from lightning_prune.reporting.tensorrt import describe_tensorrt
from lightning_prune.tables.sheet import Sheet
from lightning_prune.tables.table import Column, Table

_LISTED_NAMES = 8
_SIZE = (
    Column(heading="layer", align="left"),
    Column(heading="parameters"),
    Column(heading="non-zero"),
    Column(heading="sparsity"),
    Column(heading="pattern", align="left"),
)
_WORK = (
    Column(heading="layer", align="left"),
    Column(heading="MACs dense"),
    Column(heading="effective"),
    Column(heading="bytes"),
    Column(heading="zlib"),
    Column(heading="peak memory"),
)
_CSV = (
    "name",
    "kind",
    "dense_parameters",
    "parameters",
    "nonzeros",
    "sparsity",
    "pattern",
    "tensorrt",
    "dense_macs",
    "effective_macs",
    "unknown",
    "dense_bytes",
    "bytes",
    "compressed_bytes",
    "peak_bytes",
)


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """The size and the work of one module, without its children.

    Args:
        name: Qualified name of the module; empty for the whole model.
        kind: Class of the module.
        dense_parameters: Number of parameter entries in the dense module.
        parameters: Number of parameter entries in the pruned module.
        nonzeros: Number of parameter entries that are not zero.
        pattern: The pattern of the zeros in the matrices; empty for a module without a matrix.
        dense_macs: Multiply-accumulate operations of the dense module.
        effective_macs: Multiply-accumulate operations of the pruned module with a nonzero weight.
        unknown: Operations with an unknown number of multiplications, which the numbers leave out.
        dense_bytes: Bytes of the dense module's parameters, as they are stored.
        bytes: Bytes of the pruned module's parameters, as they are stored.
        compressed_bytes: The same bytes, compressed by zlib.
        peak_bytes: Largest number of bytes of activations alive at one time while the module ran.
        tensorrt: ``"sparse"`` if TensorRT's ``--sparsity=enable`` can run the matrix of the module
            on sparse tensor cores, as it can if the matrix is 2:4; else the reason why it cannot;
            empty for a module without a matrix.
    """

    name: str
    kind: str
    dense_parameters: int
    parameters: int
    nonzeros: int
    pattern: str
    dense_macs: int
    effective_macs: int
    unknown: tuple[str, ...]
    dense_bytes: int
    bytes: int
    compressed_bytes: int
    peak_bytes: int
    tensorrt: str = ""

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in the pruned module's parameters, in [0, 1]."""
        return 1 - self.nonzeros / self.parameters if self.parameters else 0.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """The size, work, memory and latency of a pruned module beside the dense module.

    Args:
        model: Class of the module.
        example: Shapes and types of the input of all measurements.
        layers: A row for each module that holds parameters or multiplies. Each parameter is in
            exactly one row.
        sparsity: Fraction of zeros in the prunable weights, as `Sparsity` counts it.
        peak_bytes: Largest number of bytes of activations alive at one time, with the input.
        dense_peak_bytes: The same number for the dense module.
        latencies: Dense against pruned, in each runtime.
        emptied: Names of weights with zeros only.
        constant: Names of other modules with an output that no longer depends on the input because
            of emptied weights; ``"output"`` stands for the output of the model.
        notes: The measurements that failed, and why.
    """

    model: str
    example: str
    layers: tuple[LayerReport, ...]
    sparsity: float
    peak_bytes: int
    dense_peak_bytes: int
    latencies: tuple[Latency, ...]
    emptied: tuple[str, ...]
    constant: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def total(self) -> LayerReport:
        """The row of the whole model: the peak of memory, and the sums of all other numbers."""
        return _sum_up(self.model, self.layers, self.peak_bytes)

    def table(self) -> Sheet:
        """Return tables of size, work and latency, and the findings, for terminal and notebook."""
        parts: list[Table | Text] = [
            Text(f"{self.model} on {self.example}", style="bold"),
            *_tables(self),
            *map(Text, _findings(self)),
            *(Text(f"warning: {line}", style="yellow") for line in _warnings(self)),
            *(Text(f"note: {line}", style="dim") for line in self.notes),
        ]
        return Sheet(parts)

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def to_markdown(self) -> str:
        """Return the findings and the tables as Markdown."""
        lines = _findings(self)
        lines += [f"**warning**: {line}" for line in _warnings(self)]
        lines += [f"note: {line}" for line in self.notes]
        parts = [
            f"**{self.model}** on {self.example}",
            "\n".join(f"- {line}" for line in lines),
            *(table.to_markdown() for table in _tables(self)),
        ]
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> str:
        """Return all numbers and the numbers derived from them; times are in seconds."""
        values = dataclasses.asdict(self)
        values["total"] = dataclasses.asdict(self.total) | {"sparsity": self.total.sparsity}
        for row, layer in zip(values["layers"], self.layers, strict=True):
            row["sparsity"] = layer.sparsity
        for row, latency in zip(values["latencies"], self.latencies, strict=True):
            row["verdict"] = latency.verdict
        return json.dumps(values, indent=2) + "\n"

    def to_csv(self) -> str:
        """Return a line for each layer and a last line for the model, without latencies."""
        layers = [*self.layers, dataclasses.replace(self.total, name="all")]
        rows = [
            [
                " ".join(layer.unknown) if name == "unknown" else getattr(layer, name)
                for name in _CSV
            ]
            for layer in layers
        ]
        return Table(columns=[Column(heading=name) for name in _CSV], rows=rows).to_csv()

    @check_arguments
    def write(self, path: Path) -> list[Path]:
        """Write the report as the suffix says: ``.json``, ``.csv`` or ``.md``.

        Args:
            path: The file; or a folder, which gets all three files.

        Returns:
            The files that were written.

        Raises:
            ValueError: If the suffix is another, or a file cannot be written.
        """
        files = check_output(path)
        with replace_files(files) as written:
            for file in written:
                file.write_text(_WRITERS[file.suffix](self))
        return files


_WRITERS: dict[str, Callable[[Report], str]] = {
    ".json": Report.to_json,
    ".csv": Report.to_csv,
    ".md": Report.to_markdown,
}


def check_output(path: Path) -> list[Path]:
    """Return the files of a report; raise ValueError if they cannot be written there."""
    if path.suffix and path.suffix not in _WRITERS:
        raise ValueError(f"need a folder or a .json, .csv or .md file, got output='{path}'")
    files = [path] if path.suffix else [path / f"report{suffix}" for suffix in _WRITERS]
    return [check_output_file(file) for file in files]


def _sum_up(model: str, layers: Sequence[LayerReport], peak_bytes: int) -> LayerReport:
    def add_up(name: str) -> int:
        return sum(getattr(layer, name) for layer in layers)

    return LayerReport(
        name="",
        kind=model,
        dense_parameters=add_up("dense_parameters"),
        parameters=add_up("parameters"),
        nonzeros=add_up("nonzeros"),
        pattern="",
        dense_macs=add_up("dense_macs"),
        effective_macs=add_up("effective_macs"),
        unknown=tuple(name for layer in layers for name in layer.unknown),
        dense_bytes=add_up("dense_bytes"),
        bytes=add_up("bytes"),
        compressed_bytes=add_up("compressed_bytes"),
        peak_bytes=peak_bytes,
    )


def _tables(report: Report) -> list[Table]:
    layers = _merge_small_layers(report)
    tables = [
        Table(title="Size", columns=_SIZE, rows=[*map(_size_row, layers)], has_total=True),
        Table(
            title="Work and memory", columns=_WORK, rows=[*map(_work_row, layers)], has_total=True
        ),
    ]
    if report.latencies:
        tables.append(latency_table(report.latencies))
    return tables


def _merge_small_layers(report: Report) -> list[LayerReport]:
    """Return each layer with a matrix, the sum of the other layers, and the sum of all layers."""
    large = [layer for layer in report.layers if layer.pattern or layer.dense_macs]
    small = [layer for layer in report.layers if layer not in large]
    rows = [dataclasses.replace(layer, name=layer.name or f"({layer.kind})") for layer in large]
    if small:
        name = f"{len(small)} without a matrix" if len(small) > 1 else small[0].name
        others = _sum_up(report.model, small, max(layer.peak_bytes for layer in small))
        rows.append(dataclasses.replace(others, name=name))
    return [*rows, dataclasses.replace(report.total, name="all")]


def _size_row(layer: LayerReport) -> list[str]:
    parameters = f"{layer.parameters:,}"
    if layer.dense_parameters != layer.parameters:
        parameters += f" of {layer.dense_parameters:,}"
    return [
        layer.name,
        parameters,
        f"{layer.nonzeros:,}",
        f"{layer.sparsity:.4f}",
        layer.pattern,
    ]


def _work_row(layer: LayerReport) -> list[str]:
    unknown = " and more" if layer.unknown else ""
    return [
        layer.name,
        f"{layer.dense_macs:,}{unknown}",
        f"{layer.effective_macs:,}{unknown}",
        _shorten(layer.bytes),
        _shorten(layer.compressed_bytes),
        _shorten(layer.peak_bytes),
    ]


def _shorten(number: int) -> str:
    """Return a number of bytes with three digits.

    Examples:
        >>> _shorten(999), _shorten(12_345), _shorten(1_234_567)
        ('999 B', '12.3 kB', '1.23 MB')
    """
    value, unit = float(number), ""
    for bigger in ("k", "M", "G", "T"):
        if value < 999.5:
            break
        value, unit = value / 1000, bigger
    return f"{value:.3g} {unit}B"


def _findings(report: Report) -> list[str]:
    """Return the conclusions from the numbers, in words."""
    total = report.total
    lines = [
        f"{report.sparsity:.4f} of the prunable weights are zero, {total.sparsity:.4f} of all "
        "parameters"
    ]
    if total.dense_parameters > total.parameters:
        times = total.dense_parameters / max(total.parameters, 1)
        lines.append(f"{times:.2f} times fewer parameters than dense")
    if total.compressed_bytes:
        times = total.dense_bytes / total.compressed_bytes
        lines.append(f"{times:.2f} times smaller on disk than dense, compressed by zlib")
    if report.peak_bytes < report.dense_peak_bytes:
        times = report.dense_peak_bytes / report.peak_bytes
        lines.append(f"{times:.2f} times less memory for activations at the peak")
    lines += map(describe_latency, report.latencies)
    if report.sparsity and any(latency.verdict == "no faster" for latency in report.latencies):
        lines.append(
            "zeros in place are multiplied like any other number; a kernel that skips zeros, or "
            "removed channels, would be faster"
        )
    return lines + describe_tensorrt({each.name: each.tensorrt for each in report.layers})


def _warnings(report: Report) -> list[str]:
    lines = []
    if report.emptied:
        names = list_names(report.emptied, at_most=_LISTED_NAMES)
        lines.append(f"all weights are zero in {names}")
    constant = [name for name in report.constant if name != "output"]
    if constant:
        names = list_names(constant, at_most=_LISTED_NAMES)
        lines.append(f"therefore the output is constant in {names}")
    if "output" in report.constant:
        lines.append("therefore the output of the model no longer depends on the input")
    return lines

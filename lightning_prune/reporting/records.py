"""What pruning has bought, as records."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType

from lightning_prune.reporting.report import tables
from lightning_prune.reporting.latency import Latency


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What one module holds and does; its children's own parameters are in their own rows.

    Args:
        name: Its qualified name; empty for the whole model.
        kind: Its class.
        dense_parameters: Number of its parameters' entries in the dense module.
        parameters: Number of entries that are there.
        nonzeros: Number of those that are not zero.
        pattern: What the zeros of its matrices form; empty if it has none.
        dense_macs: Multiplications with an addition each, in the dense module.
        effective_macs: Those that are there and do not multiply a weight that is zero.
        unknown: Operations whose multiplications are not known and so left out.
        dense_bytes: Bytes of its parameters in the dense module, as they are stored.
        bytes: The same of those that are there.
        compressed_bytes: These bytes through zlib.
        peak_bytes: The most bytes of activations that were alive while it ran.
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

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in the parameters that are there, in [0, 1]."""
        return 1 - self.nonzeros / self.parameters if self.parameters else 0.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What pruning has bought.

    Args:
        model: Class of the module.
        example: Shapes and types of the input that all was measured with.
        layers: A row for each module that holds parameters, or multiplies without any; each
            parameter is in one of them.
        sparsity: Fraction of zeros in the prunable weights, as `Sparsity` counts it.
        peak_bytes: The most bytes of activations that were alive at once, the input among them.
        dense_peak_bytes: The same of the dense module.
        latencies: Dense against pruned, in each runtime.
        emptied: Names of weights that are zero altogether.
        constant: Names of other modules whose output no longer depends on the input because of
            that; ``"output"`` if the model's does not.
        notes: What could not be measured, and why.
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
        """All layers together; memory is the peak, everything else the sum."""

        def of_all(name: str) -> int:
            return sum(getattr(layer, name) for layer in self.layers)

        return LayerReport(
            name="",
            kind=self.model,
            dense_parameters=of_all("dense_parameters"),
            parameters=of_all("parameters"),
            nonzeros=of_all("nonzeros"),
            pattern="",
            dense_macs=of_all("dense_macs"),
            effective_macs=of_all("effective_macs"),
            unknown=tuple(name for layer in self.layers for name in layer.unknown),
            dense_bytes=of_all("dense_bytes"),
            bytes=of_all("bytes"),
            compressed_bytes=of_all("compressed_bytes"),
            peak_bytes=self.peak_bytes,
        )

    def table(self) -> RenderableType:
        """Return tables of size, work and latency and what follows from them, for a terminal."""
        return tables.terminal(self)

    def to_markdown(self) -> str:
        """Return the same as Markdown."""
        return tables.markdown(self)

    def to_json(self) -> str:
        """Return all numbers; times are in seconds."""
        return tables.json_text(self)

    def to_csv(self) -> str:
        """Return a line for each layer and a last one for all; latencies are not in it."""
        return tables.csv_text(self)

    def write(self, path: Path) -> list[Path]:
        """Write the file, by its suffix ``.json``, ``.csv`` or ``.md``, or all three in a folder.

        Returns:
            What was written.

        Raises:
            ValueError: If the suffix is another.
        """
        check_output(path)
        paths = [path] if path.suffix else [path / f"report{kind}" for kind in _KINDS]
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for one in paths:
            one.write_text(_KINDS[one.suffix](self))
        return paths


_KINDS: dict[str, Callable[[Report], str]] = {
    ".json": Report.to_json,
    ".csv": Report.to_csv,
    ".md": Report.to_markdown,
}


def check_output(path: Path) -> None:
    """Raise ValueError if no report can be written there."""
    if path.suffix and path.suffix not in _KINDS:
        raise ValueError(f"need a folder or a .json, .csv or .md file, got output='{path}'")

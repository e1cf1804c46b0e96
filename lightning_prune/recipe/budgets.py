"""How much, as a cost: the multiply-adds, parameters, bytes or latency that may remain."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from lightning_prune.arguments.checks import check_fields

Unit = Literal["macs", "parameters", "bytes", "latency"]
"""Units of a cost; a latency is in milliseconds."""


class Budget(ABC):
    """An answer to *how much?*: the largest cost that the pruned model may have.

    A subclass is a frozen dataclass.

    Attributes:
        unit: Unit of the cost.
        needs_example: Whether the cost depends on an example of the input.
        needs_removal: Whether only channels that are removed lower the cost, not zeros in place.
    """

    unit: ClassVar[Unit]

    @property
    @abstractmethod
    def needs_example(self) -> bool:
        """Whether the cost depends on an example of the input."""

    @property
    @abstractmethod
    def needs_removal(self) -> bool:
        """Whether only channels that are removed lower the cost, not zeros in place."""

    @abstractmethod
    def limit(self, dense: float) -> float:
        """Return the largest cost that the budget allows.

        Args:
            dense: The cost of the dense model.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return the budget as a user writes it in Python."""


class _ShareBudget(Budget):
    """A budget as a fraction of the dense cost, or as a number."""

    keep: float | None
    at_most: float | None

    def __post_init__(self) -> None:
        """Raise ValueError unless exactly one of the two arguments is given, in range."""
        check_fields(self)
        _check_single(type(self).__name__, keep=self.keep, at_most=self.at_most)
        if self.keep is not None and not 0 < self.keep < 1:
            is_number = math.isfinite(self.keep) and self.keep > 1
            raise ValueError(
                f"need 0 < keep < 1, the fraction of the dense cost that may remain, got "
                f"keep={self.keep}"
                + (f"; for a number of {self.unit}, write at_most={self.keep}" if is_number else "")
            )
        if self.at_most is not None and not (math.isfinite(self.at_most) and self.at_most >= 1):
            is_fraction = 0 < self.at_most < 1
            raise ValueError(
                f"need a finite at_most >= 1, a number of {self.unit}, got at_most={self.at_most}"
                + (f"; for a fraction, write keep={self.at_most}" if is_fraction else "")
            )

    def limit(self, dense: float) -> float:
        """Return the largest cost: ``at_most``, or ``keep`` of the dense cost."""
        return self.at_most if self.keep is None else self.keep * dense  # type: ignore[return-value]

    def describe(self) -> str:
        """Return the budget as a user writes it in Python."""
        name, value = ("at_most", self.at_most) if self.keep is None else ("keep", self.keep)
        return f"{type(self).__name__}({name}={value:.15g})"


@dataclass(frozen=True, kw_only=True)
class MacsBudget(_ShareBudget):
    """Multiply-adds of a forward pass of the example, as `report` counts them.

    With zeros in place they are the multiplications by weights that are not zero. With channels
    they are those that remain when the channels are removed.

    Args:
        keep: Fraction of the dense multiply-adds that may remain, in (0, 1).
        at_most: Number of multiply-adds that may remain.

    Raises:
        ValueError: If neither or both are given, or an argument is out of range.

    Examples:
        >>> MacsBudget(keep=0.5).limit(2e9)
        1000000000.0
    """

    unit: ClassVar[Unit] = "macs"
    keep: float | None = None
    at_most: float | None = None

    @property
    def needs_example(self) -> bool:
        """Multiply-adds depend on the size of the input."""
        return True

    @property
    def needs_removal(self) -> bool:
        """Multiplications by zero do not count."""
        return False


@dataclass(frozen=True, kw_only=True)
class ParameterBudget(_ShareBudget):
    """Parameters of the whole model that are not zero, or that remain when channels are removed.

    Args:
        keep: Fraction of the parameters that may remain, in (0, 1).
        at_most: Number of parameters that may remain.

    Raises:
        ValueError: If neither or both are given, or an argument is out of range.
    """

    unit: ClassVar[Unit] = "parameters"
    keep: float | None = None
    at_most: float | None = None

    @property
    def needs_example(self) -> bool:
        """Parameters are counted without an input."""
        return False

    @property
    def needs_removal(self) -> bool:
        """Zeros do not count."""
        return False


@dataclass(frozen=True, kw_only=True)
class BytesBudget(_ShareBudget):
    """Bytes of the file that is deployed.

    Args:
        keep: Fraction of the dense file's bytes that may remain, in (0, 1).
        at_most: Number of bytes that may remain.
        file: The file: ``"sparse"`` of `save_sparse`, ``"onnx"`` of `export_onnx`, ``"onnx-int8"``
            of `quantize_onnx`, or ``"compressed"``, the ONNX file compressed by Zstandard as
            `file_size` does it.

    Raises:
        ValueError: If neither or both of the first two are given, or an argument is out of range.
    """

    unit: ClassVar[Unit] = "bytes"
    keep: float | None = None
    at_most: float | None = None
    file: Literal["sparse", "onnx", "onnx-int8", "compressed"] = "sparse"

    @property
    def needs_example(self) -> bool:
        """An ONNX file holds the graph of a call."""
        return self.file != "sparse"

    @property
    def needs_removal(self) -> bool:
        """An ONNX file stores zeros as it stores other numbers."""
        return self.file in ("onnx", "onnx-int8")

    def describe(self) -> str:
        """Return the budget as a user writes it in Python."""
        return super().describe().removesuffix(")") + f", file={self.file!r})"


@dataclass(frozen=True, kw_only=True)
class LatencyBudget(Budget):
    """The measured time of a forward pass of the example, when the channels are removed.

    Args:
        speedup: Dense latency over pruned latency that is asked for, above 1.
        at_most_ms: Milliseconds that a forward pass may take.
        runtime: ``"onnx"`` for ONNX Runtime, or ``"torch"``.
        threads: Number of threads that an operation may use on CPU.
        batch_size: Number of samples of the measured input; by default as in the example.
        table: CSV file of measured latencies, a `LatencyTable`. `PruningCallback` reads it if it
            exists, and else measures and writes it. None measures at each start.

    Raises:
        ValueError: If neither or both of the first two are given, or an argument is out of range.
    """

    unit: ClassVar[Unit] = "latency"
    speedup: float | None = None
    at_most_ms: float | None = None
    runtime: Literal["onnx", "torch"] = "onnx"
    threads: int = 1
    batch_size: int | None = None
    table: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError unless exactly one of the first two arguments is given, in range."""
        check_fields(self)
        _check_single(type(self).__name__, speedup=self.speedup, at_most_ms=self.at_most_ms)
        if self.speedup is not None and not (math.isfinite(self.speedup) and self.speedup > 1):
            raise ValueError(f"need speedup > 1, got speedup={self.speedup}")
        if self.at_most_ms is not None and not (
            math.isfinite(self.at_most_ms) and self.at_most_ms > 0
        ):
            raise ValueError(f"need at_most_ms > 0, got at_most_ms={self.at_most_ms}")
        for name, number in (("threads", self.threads), ("batch_size", self.batch_size)):
            if number is not None and number < 1:
                raise ValueError(f"need {name} >= 1, got {name}={number}")

    @property
    def needs_example(self) -> bool:
        """Latency is measured with an input."""
        return True

    @property
    def needs_removal(self) -> bool:
        """No kernel here is faster for zeros in place."""
        return True

    def limit(self, dense: float) -> float:
        """Return the largest latency in milliseconds."""
        return dense / self.speedup if self.speedup is not None else self.at_most_ms  # type: ignore[return-value]

    def describe(self) -> str:
        """Return the budget as a user writes it in Python."""
        given = self.speedup is not None
        name, value = ("speedup", self.speedup) if given else ("at_most_ms", self.at_most_ms)
        return f"LatencyBudget({name}={value:.15g}, runtime={self.runtime!r})"


def _check_single(kind: str, **given: float | None) -> None:
    """Raise ValueError unless exactly one of two arguments is given."""
    if sum(value is not None for value in given.values()) != 1:
        names = " and ".join(given)
        got = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"need exactly one of {names} in {kind}, got {got}")

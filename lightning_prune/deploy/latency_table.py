"""Measured latencies of narrower models, and the file that holds them."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from lightning_prune.arguments.checks import check_fields
from lightning_prune.deploy.files import replace_file

WHOLE = "*"
"""Stands for all groups in the place of a group's name."""

_HEADING = ["group", "channels", "ms"]


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    r"""Measured milliseconds of a whole model by the number of channels that a group keeps.

    A row says how long a forward pass takes if a group keeps some channels, and all other groups
    keep all channels. The rows of the group ``*`` say how long it takes if all groups keep the same
    fraction. Such a row has the number of channels of all groups together. The row of ``*`` with
    most channels is the dense model.

    The file is CSV, and can be written by hand for another device:

    .. code-block:: text

        # phone, 1 thread
        group,channels,ms
        *,192,8.0
        *,96,4.4
        conv1.weight,64,8.0
        conv1.weight,32,6.9
        conv2.weight,128,8.0
        conv2.weight,64,5.6

    Each group needs a row with all channels. Only ratios to that row are read. So a group can be
    measured at another time than the others. Lines that start with ``#`` are notes.

    Args:
        ms: Milliseconds by the name of a group and the number of channels.
        note: Where the latencies were measured, in words.

    Raises:
        ValueError: If a number is not positive, or there is no row of ``*``.

    Examples:
        >>> table = LatencyTable(ms={"*": {64: 8.0}, "conv.weight": {64: 8.0, 16: 5.0, 32: 4.0}})
        >>> table.dense_ms, table.curve("conv.weight")
        (8.0, ((16, 0.5625), (32, 0.5625), (64, 1.0)))
    """

    ms: Mapping[str, Mapping[float, float]]
    note: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError if a number is not positive, or there is no row of ``*``."""
        check_fields(self)
        if not self.ms.get(WHOLE):
            raise ValueError(
                f"need a row of the group '{WHOLE}' with all channels of the model, got rows of "
                f"{_list_names(self.ms)}; add the latency of the dense model"
            )
        for group, widths in self.ms.items():
            for channels, ms in widths.items():
                _check_numbers(group, channels, ms)

    @property
    def dense_ms(self) -> float:
        """Milliseconds of the dense model."""
        return self.ms[WHOLE][self.find_all_channels(WHOLE)]

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups, without ``*``."""
        return tuple(group for group in self.ms if group != WHOLE)

    def find_all_channels(self, group: str) -> float:
        """Return the number of channels of a group in the dense model."""
        return max(self.ms[group])

    def curve(self, group: str) -> tuple[tuple[float, float], ...]:
        """Return numbers of channels with fractions of the dense latency; they never fall.

        A latency above the dense latency counts as the dense latency. Other latencies that fall
        with more channels are averaged (isotonic regression, by pooling adjacent violators: Ayer et
        al., "An Empirical Distribution Function for Sampling with Incomplete Information", 1955).

        Args:
            group: The name of the group, or ``*``.
        """
        widths = sorted(self.ms[group].items())
        dense = widths[-1][1]
        fractions = [min(ms / dense, 1.0) for _, ms in widths[:-1]]
        channels = [channels for channels, _ in widths]
        return tuple(zip(channels, [*make_monotone(fractions), 1.0], strict=True))

    def save(self, path: str | Path) -> None:
        """Write the table as CSV.

        Args:
            path: The file; an older file is replaced.
        """
        with replace_file(path) as written, open(written, "w", newline="") as file:
            file.writelines(f"# {line}\n" for line in self.note.splitlines())
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_HEADING)
            for group, widths in self.ms.items():
                for channels, ms in sorted(widths.items(), reverse=True):
                    writer.writerow([group, repr(channels), repr(ms)])

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """Read a table from CSV.

        Args:
            path: The file.

        Raises:
            ValueError: If a line cannot be read; the error names the line.
        """
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        notes = [line[1:].strip() for line in takewhile(_is_note, lines)]
        numbered = [
            (number, line)
            for number, line in enumerate(lines, 1)
            if line.strip() and not _is_note(line)
        ]
        rows = list(csv.reader([line for _, line in numbered], skipinitialspace=True))
        places = [f"line {number} of '{path}'" for number, _ in numbered]
        if not rows or [cell.strip() for cell in rows[0]] != _HEADING:
            where = places[0] if places else f"no line in '{path}'"
            raise ValueError(
                f"need the heading {','.join(_HEADING)}, got {','.join(rows[0]) if rows else ''!r}"
                f" ({where})"
            )
        try:
            return cls(ms=_read_rows(rows[1:], places[1:]), note="\n".join(notes))
        except ValueError as error:
            raise ValueError(error if str(path) in str(error) else f"{error} ('{path}')") from None


def make_monotone(values: Sequence[float]) -> list[float]:
    """Return the values nearest to some values, in the sum of squares, that never fall.

    Examples:
        >>> make_monotone([1.0, 3.0, 2.0, 4.0])
        [1.0, 2.5, 2.5, 4.0]
    """
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and _mean(pools[-2]) >= _mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return [_mean(pool) for pool in pools for _ in pool]


def interpolate(points: Sequence[tuple[float, float]], x: float) -> float:
    """Return the value at x on the lines between points, and beyond the ends that of the end.

    Args:
        points: Pairs of x and value, in ascending order of x; at least one.
        x: Where.

    Examples:
        >>> [interpolate([(0, 1.0), (4, 3.0)], x) for x in (-1, 0, 1, 4, 5)]
        [1.0, 1.0, 1.5, 3.0, 3.0]
    """
    if x <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if x < right:
            return low + (high - low) * (x - left) / (right - left)
    return points[-1][1]


def _read_rows(rows: Iterable[Sequence[str]], places: Iterable[str]) -> dict[str, Any]:
    """Return milliseconds by group and channels; raise ValueError with the line of an error."""
    table: dict[str, dict[float, float]] = {}
    for row, place in zip(rows, places, strict=True):
        if len(row) != len(_HEADING):
            raise ValueError(f"need three columns, {','.join(_HEADING)}, got {row} ({place})")
        group = row[0].strip()
        try:
            channels, ms = (float(cell) for cell in row[1:])
            _check_numbers(group, channels, ms)
        except ValueError:
            raise ValueError(
                f"need positive numbers of channels and ms, got {','.join(row)!r} ({place})"
            ) from None
        widths = table.setdefault(group, {})
        if channels in widths:
            raise ValueError(
                f"need each width of '{group}' once, got channels={channels:g} again ({place}); "
                "leave one of the two rows out"
            )
        widths[int(channels) if channels.is_integer() else channels] = ms
    return table


def _check_numbers(group: str, channels: float, ms: float) -> None:
    is_whole = group == WHOLE or float(channels).is_integer()
    if not all(math.isfinite(number) and number > 0 for number in (channels, ms)) or not is_whole:
        raise ValueError(
            f"need a whole number of channels > 0 and ms > 0, got channels={channels}, ms={ms} of "
            f"'{group}'"
        )


def _is_note(line: str) -> bool:
    return line.lstrip().startswith("#")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _list_names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "no group"

"""The curves of a search: losses and kept atoms of groups by sparsity, kept in a file."""

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_prune.deploy.files import replace_file
from lightning_prune.engine.groups import Group
from lightning_prune.models.progress import track_progress
from lightning_prune.post_training.trials import TrialBar, TrialValidator
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.schedules import OneShotSchedule
from lightning_prune.tables.table import Column, Table


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Groups that share a sparsity, with their loss and their kept atoms at each level.

    A producer that makes the channels of several groups gives all of them the same sparsity.

    Args:
        groups: The groups.
        producers: Names of the weights whose sparsity is chosen.
        sparsities: The levels; the first is 0.
        losses: How much worse the metric is at each level; NaN if a group cannot be that sparse.
        kept: The atoms that each group keeps at each level, by name.
    """

    groups: tuple[Group, ...]
    producers: tuple[str, ...]
    sparsities: tuple[float, ...]
    losses: tuple[float, ...]
    kept: tuple[Mapping[str, int], ...]

    @property
    def rising(self) -> tuple[float, ...]:
        """The losses, at least 0 and never falling: a lucky level is worth its sparser neighbor.

        Pruning more rarely helps a trained model. A loss that falls shows noise of the metric.
        """
        known = [max(loss, 0.0) for loss in self.losses if not math.isnan(loss)]
        rising = iter(list(accumulate(known, max)))
        return tuple(loss if math.isnan(loss) else next(rising) for loss in self.losses)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A metric with a single group pruned.

    Args:
        group: Name of the group.
        sparsity: The sparsity of the group.
        metric: The value of the metric.
    """

    group: str
    sparsity: float
    metric: float


class CurveFile:
    """Measurements that later searches reuse, if checkpoint, recipe and options are the same.

    Args:
        path: The CSV file; None to keep the measurements in memory only.
        digest: Stands for checkpoint, recipe and options; a row with another digest is dropped.
        monitor: Name of the metric.
    """

    def __init__(self, path: Path | None, *, digest: str, monitor: str) -> None:
        self._path, self._digest, self._monitor = path, digest, monitor
        self._rows = {(row.group, row.sparsity): row for row in self._read()}

    def find(self, group: str, sparsity: float) -> float | None:
        """Return the metric of a group at a sparsity; None if it is not measured."""
        row = self._rows.get((group, sparsity))
        return None if row is None else row.metric

    def add(self, row: Measurement) -> None:
        """Keep a measurement, and write the file anew."""
        self._rows[row.group, row.sparsity] = row
        if self._path is not None:
            with replace_file(self._path) as written:
                written.write_text(self._to_csv(), newline="")

    def _read(self) -> list[Measurement]:
        if self._path is None or not self._path.exists():
            return []
        with self._path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("digest") == self._digest]
        return [
            Measurement(
                group=row["group"],
                sparsity=float(row["sparsity"]),
                metric=float(row[self._monitor]),
            )
            for row in rows
        ]

    def _to_csv(self) -> str:
        headings = ("group", "sparsity", self._monitor, "digest")
        return Table(
            columns=[Column(heading=heading) for heading in headings],
            rows=[
                (row.group, row.sparsity, row.metric, self._digest) for row in self._rows.values()
            ],
        ).to_csv()


def digest_trials(validator: TrialValidator, recipe: Recipe) -> str:
    """Return a text that is another for other weights, another recipe or other options.

    The value of the dense model stands for the validation data.

    Args:
        validator: Validates the trials.
        recipe: The recipe of the user.
    """
    options = validator.monitor, validator.batches, validator.train_mode, validator.statistics
    plain = recipe.at_once(OneShotSchedule())
    found = hashlib.blake2b(digest_size=8)
    found.update(f"{plain.to_yaml()} {options} {validator.dense:.6g}".encode())
    _add_tensors(found, validator.model)
    return found.hexdigest()


def outline_curves(validator: TrialValidator, sparsities: Sequence[float]) -> tuple[Curve, ...]:
    """Return the curves before any measurement: a loss is 0, or NaN where it cannot be measured.

    Args:
        validator: Prunes the groups.
        sparsities: The grid, rising, without 0.
    """
    levels = (0.0, *sparsities)
    return tuple(
        Curve(
            groups=together,
            producers=tuple(dict.fromkeys(name for group in together for name in group.producers)),
            sparsities=levels,
            losses=tuple(
                0.0 if _can_prune(validator, together, each) else math.nan for each in levels
            ),
            kept=tuple(_count_kept(validator, together, sparsity) for sparsity in levels),
        )
        for together in track_progress(_join(validator.groups), "counting what groups keep")
    )


def measure_curve(curve: Curve, validator: TrialValidator, file: CurveFile, bar: TrialBar) -> Curve:
    """Return a curve with losses; trials that the file knows are not repeated.

    If several groups share the sparsity, their losses are summed.

    Args:
        curve: The outline.
        validator: Validates the trials.
        file: Keeps the measurements.
        bar: Shows the progress.
    """
    losses = [0.0] * len(curve.sparsities)
    for group in curve.groups:
        for level, sparsity in enumerate(curve.sparsities[1:], 1):
            metric = file.find(group.name, sparsity)
            if metric is None:
                with bar.step(f"{group.name} at {sparsity:g}"):
                    metric = validator.validate_alone(group, sparsity)
                file.add(Measurement(group=group.name, sparsity=sparsity, metric=metric))
            losses[level] += validator.loss(metric)
    return replace(curve, losses=tuple(losses))


def count_unknown(curves: Sequence[Curve], file: CurveFile) -> int:
    """Return the number of trials of single groups that the file does not know."""
    pairs = [
        (group.name, sparsity)
        for curve in curves
        for group in curve.groups
        for sparsity in curve.sparsities[1:]
    ]
    return sum(file.find(*pair) is None for pair in pairs)


def _add_tensors(found: "hashlib.blake2b", model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            values = tensor.detach().cpu().contiguous().reshape(-1)
            found.update(values.view(torch.uint8).numpy().data)


def _count_kept(
    validator: TrialValidator, groups: Sequence[Group], sparsity: float
) -> dict[str, int]:
    """Return the atoms that each group keeps at a sparsity; as now where that cannot be."""
    if sparsity == 0 or not _can_prune(validator, groups, sparsity):
        return {group.name: group.atoms_kept for group in groups}
    return {group.name: validator.prune(group, sparsity).atoms_kept for group in groups}


def _can_prune(validator: TrialValidator, groups: Sequence[Group], sparsity: float) -> bool:
    return sparsity == 0 or all(validator.can_prune(group, sparsity) for group in groups)


def _join(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """Return the groups, with those together that have a producer in common."""
    joined: list[tuple[Group, ...]] = []
    for group in groups:
        same = [some for some in joined if any(_share_producer(group, each) for each in some)]
        joined = [some for some in joined if some not in same]
        joined.append((*(each for some in same for each in some), group))
    return joined


def _share_producer(group: Group, other: Group) -> bool:
    return not set(group.producers).isdisjoint(other.producers)

"""The latency of a model, predicted from a table of measured widths."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from lightning_prune.deploy.latency_table import WHOLE, LatencyTable, interpolate, make_monotone
from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.channel_layers import ChannelLayer, find_layers
from lightning_prune.engine.costs import Cost
from lightning_prune.engine.latency_fit import fit_times
from lightning_prune.recipe.budgets import Unit

LARGEST_ERROR = 0.05
"""Fraction by which a prediction may be off before the table is corrected."""


class LatencyCost(Cost):
    r"""The latency of a model, in milliseconds, by the channels that each group keeps.

    A layer's time is a product of what its groups keep, since two neighboring groups share the
    layer and save the shared part only once. With the fraction :math:`t_l` of the dense latency
    that layer l takes, fitted to the groups measured alone,

    .. math:: p = 1 - \sum_l t_l \Bigl(1 - \prod_{a} \bigl(1 - \sum_g w_{ag} (1 -
        \varphi_g(k_g))\bigr)\Bigr), \qquad T = T_0 \, h(p),

    where :math:`\varphi_g` rises with the channels :math:`k_g` from the measured widths, and
    :math:`h` rises through the points where all groups keep the same fraction, measured whole. So
    the cost never falls with more channels.

    Sums of layers read from a measured table are used by Yang et al., "NetAdapt" (2018),
    https://arxiv.org/abs/1804.03230, and, with inputs and outputs of a layer, by Shen et al.,
    "Structural Pruning via Latency-Saliency Knapsack" (HALP, 2022),
    https://arxiv.org/abs/2210.06659.

    Args:
        table: The measured latencies.
        layers: The layers of the model.
        totals: The number of channels of each group, by its name.

    Attributes:
        table: The measured latencies.

    Raises:
        ValueError: If the table is of other groups, or of other numbers of channels.
    """

    unit: Unit = "latency"
    largest_error: ClassVar[float | None] = LARGEST_ERROR

    def __init__(
        self, table: LatencyTable, layers: Sequence[ChannelLayer], totals: Mapping[str, int]
    ) -> None:
        _check(table, totals)
        self.table = table
        self._layers, self._totals = tuple(layers), dict(totals)
        self._times, self._curves = fit_times(layers, table)
        self._map = self._calibrate()

    @property
    def dense_ms(self) -> float:
        """Milliseconds of the dense model, the cost of all channels."""
        return self.table.dense_ms

    def __call__(self, kept: Mapping[str, int]) -> float:
        """Return the milliseconds of the model without the other channels.

        Args:
            kept: The number of channels that each group keeps, by the name of the group.
        """
        return self.dense_ms * interpolate(self._map, self._sum_layers(kept))

    def state_dict(self) -> dict[str, Any]:
        """Return the measured latencies, with all corrections."""
        ms = {group: dict(widths) for group, widths in self.table.ms.items()}
        return {"ms": ms, "note": self.table.note}

    def dense_parts(self) -> Mapping[str, float]:
        """Return the milliseconds that no group can lower, shared among the dense layers.

        The shares go by multiply-adds, since single layers are not measured.
        """
        dense = {each.name: each.work for each in self._layers if not each.groups}
        least = self(dict.fromkeys(self._totals, 0))
        work = sum(dense.values())
        return {name: least * macs / work for name, macs in dense.items() if work}

    def corrected(self, kept: Mapping[str, int], measured_ms: float) -> "LatencyCost":
        """Return the cost that is exact for a model that was measured whole.

        Other latencies are scaled with it: those below in proportion, those above along a line to
        the dense latency, which stays. The corrected table is the attribute ``table``.

        Args:
            kept: The number of channels that each group keeps in the measured model.
            measured_ms: The latency in milliseconds, positive: ``dense_ms`` over the speedup that
                was measured in turns with the dense model.

        Raises:
            ValueError: If the latency is not positive, or all channels are kept.
        """
        predicted, dense = self(kept), self.dense_ms
        if not measured_ms > 0 or predicted >= dense:
            raise ValueError(
                f"need measured_ms > 0 of a model that is predicted to be faster than the dense "
                f"{dense:g} ms, got measured_ms={measured_ms}, predicted {predicted:g} ms"
            )
        measured = min(measured_ms, dense)
        scale = [(0.0, 0.0), (predicted, measured), (dense, dense)]
        *narrower, (everything, _) = self.table.curve(WHOLE)
        whole = {channels: interpolate(scale, dense * part) for channels, part in narrower}
        whole |= {self._find_uniform(kept): measured, everything: dense}
        corrected = copy(self)
        corrected.table = replace(self.table, ms={**self.table.ms, WHOLE: whole})
        corrected._map = corrected._calibrate()
        return corrected

    def _sum_layers(self, kept: Mapping[str, float]) -> float:
        """Return the fraction of the dense latency that layers and groups predict."""
        parts = {name: interpolate(self._curves[name], kept[name]) for name in self._totals}
        return 1 - sum(each.work * (1 - each.fraction(parts.__getitem__)) for each in self._times)

    def _keep_uniformly(self, channels: float) -> float:
        """Return the predicted fraction if all groups keep the same fraction of channels."""
        fraction = channels / self.table.find_all_channels(WHOLE)
        return self._sum_layers({name: fraction * total for name, total in self._totals.items()})

    def _find_uniform(self, kept: Mapping[str, int]) -> float:
        """Return the number of channels, not rounded, that predicts the same if kept uniformly."""
        goal = self._sum_layers(kept)
        low, high = 0.0, self.table.find_all_channels(WHOLE)
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (low, middle) if self._keep_uniformly(middle) > goal else (middle, high)
        return high

    def _calibrate(self) -> list[tuple[float, float]]:
        """Return predicted and measured fractions of uniform models; both rise from 0 to 1."""
        known = {self._keep_uniformly(c): part for c, part in self.table.curve(WHOLE)}
        predicted = sorted(part for part in known if 0 < part < 1)
        measured = make_monotone([known[part] for part in predicted])
        return [(0.0, 0.0), *zip(predicted, measured, strict=True), (1.0, 1.0)]


def make_latency_cost(
    table: LatencyTable, model: nn.Module, selection: Selection, example: Any
) -> LatencyCost:
    """Return the latency of a model by the channels that groups keep.

    Args:
        table: The latencies of the same model and groups, measured by `measure_latency_table` or
            on another device.
        model: The model; it stays as it is.
        selection: The parameters and groups of channels of the model.
        example: The arguments of ``forward``.

    Raises:
        ValueError: If the table is of other groups, or of other numbers of channels.
    """
    totals = {group.name: group.total for group in selection.groups}
    return LatencyCost(table, find_layers(model, selection, example), totals)


def _check(table: LatencyTable, totals: Mapping[str, int]) -> None:
    """Raise ValueError if a table is of other groups, or of other numbers of channels."""
    missing = [name for name in totals if name not in table.groups]
    unknown = [name for name in table.groups if name not in totals]
    if missing or unknown:
        raise ValueError(
            f"need a latency table of the {len(totals)} groups that are pruned, got a table "
            f"without {missing} and with {unknown} besides; measure the latencies anew"
        )
    given = {name: table.find_all_channels(name) for name in totals}
    different = [name for name, total in totals.items() if given[name] != total]
    if different:
        name = different[0]
        raise ValueError(
            f"need a row with all {totals[name]} channels of '{name}', got at most "
            f"{given[name]:g}; measure the latencies anew, or add the row"
        )
    everything = table.find_all_channels(WHOLE)
    if everything != sum(totals.values()):
        raise ValueError(
            f"need a row with all {sum(totals.values())} channels of '{WHOLE}', all groups "
            f"together, got at most {everything:g}"
        )

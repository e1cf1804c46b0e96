"""Rounds of pruning under a tolerance: which sparsity is tried next, and which has held."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from lightning_prune.recipe.tolerance import Tolerance, find_left

Verdict = Literal["train on", "keep", "go back"]
"""Whether to train on with the present model, to keep the model, or to go back to the last kept."""

Phase = Literal["dense", "trial", "settled"]


@dataclass(kw_only=True)
class Rounds:
    """Decides from the metric of each validation how a training goes on.

    A position is in [0, 1]: 0 is dense, and 1 is the final sparsity.

    Args:
        tolerance: The answers of the user.
        final: The final sparsity, which is the most that is tried.
        phase: ``"dense"`` before the first round, ``"trial"`` in a round, and ``"settled"`` once no
            further sparsity is tried.
        dense: The metric of the dense model.
        best: The metric of the last model that was kept.
        held: The position of the last model that was kept.
        failed: The lowest position that has not held; infinite if all have held.
        tried: The position of the present round.
        validations: Number of validations in the present phase or round.
        number: Number of the present round, 1-based.
        halved: Number of times that the step was halved.

    Examples:
        >>> rounds = Rounds(tolerance=Tolerance(monitor="val_acc", patience=0), final=0.75)
        >>> rounds.judge(0.9), rounds.sparsity
        ('keep', 0.5)
        >>> rounds.judge(0.9), rounds.sparsity
        ('keep', 0.75)
        >>> rounds.judge(0.7), round(rounds.sparsity, 3)
        ('go back', 0.646)
    """

    tolerance: Tolerance
    final: float
    phase: Phase = "dense"
    dense: float = math.nan
    best: float = math.nan
    held: float = 0.0
    failed: float = math.inf
    tried: float = 0.0
    validations: int = 0
    number: int = 0
    halved: int = 0
    planned: int = field(init=False)

    def __post_init__(self) -> None:
        self.planned = self.tolerance.count_rounds(self.final)

    @property
    def share(self) -> float:
        """The share of the final sparsity that is due now."""
        return self._find_share(self.tried if self.phase == "trial" else self.held)

    @property
    def sparsity(self) -> float:
        """The sparsity that is due now."""
        return self.final * self.share

    def judge(self, metric: float) -> Verdict:
        """Return what follows from the metric of a validation.

        Raises:
            ValueError: If the metric of the dense model is not finite.
        """
        self.validations += 1
        if self.phase == "dense":
            return self._judge_dense(metric)
        holds = self.tolerance.allows(metric, dense=self.dense)
        if self.phase == "trial":
            return self._judge_trial(metric, holds=holds)
        if holds and self.tolerance.is_better(metric, self.best):
            self.best = metric
            return "keep"
        return "train on"

    def begin_again(self) -> None:
        """Begin the present round anew, from the last model that was kept."""
        self.validations = 0

    def copy(self) -> "Rounds":
        """Return a copy that later decisions do not change."""
        return replace(self)

    def state_dict(self) -> dict[str, float | int | str]:
        """Return the numbers and strings that differ from training to training."""
        return {name: getattr(self, name) for name in _STATE}

    @classmethod
    def restore(cls, tolerance: Tolerance, final: float, state: Mapping[str, Any]) -> "Rounds":
        """Return the rounds of an earlier `state_dict`; of an empty state, new rounds."""
        return cls(tolerance=tolerance, final=final, **state)

    def _judge_dense(self, metric: float) -> Verdict:
        if self.validations < self.tolerance.begin:
            return "train on"
        dense = metric if self.tolerance.dense is None else self.tolerance.dense
        if not math.isfinite(dense):
            raise ValueError(
                f"need a finite metric of the dense model, got {self.tolerance.monitor}={dense}; "
                "set begin to train the dense model first"
            )
        if not self.tolerance.allows(metric, dense=dense):
            return "train on"
        self.dense = dense
        return self._hold(metric, 0.0)

    def _judge_trial(self, metric: float, *, holds: bool) -> Verdict:
        if self.validations < self.tolerance.recovery:
            return "train on"
        if holds:
            return self._hold(metric, self.tried)
        if self.validations < self.tolerance.recovery + self.tolerance.patience:
            return "train on"
        self.failed = self.tried
        self._begin_round()
        return "go back"

    def _hold(self, metric: float, position: float) -> Verdict:
        self.best, self.held = metric, position
        self._begin_round()
        return "keep"

    def _begin_round(self) -> None:
        """Choose what is tried next: step up while all hold, then halve the step."""
        self.validations = 0
        if math.isinf(self.failed) and self.held < 1:
            self.tried = min((round(self.held * self.planned) + 1) / self.planned, 1.0)
        elif math.isfinite(self.failed) and self.halved < self.tolerance.halvings:
            self.halved += 1
            self.tried = (self.held + self.failed) / 2
        else:
            self.phase = "settled"
            return
        self.phase = "trial"
        self.number += 1

    def _find_share(self, position: float) -> float:
        """Return the share of the final sparsity at a position."""
        if position in (0.0, 1.0):
            return position
        left = find_left(self.final)
        return float((1 - left**position) / (1 - left))


_STATE = [
    each.name for each in fields(Rounds) if each.name not in ("tolerance", "final", "planned")
]

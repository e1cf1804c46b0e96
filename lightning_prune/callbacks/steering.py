"""The part of a callback that steers the updates, where the schedule alone does not."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from lightning_prune.callbacks.namespace import LightningModule
from lightning_prune.recipe.clocks import Clock
from lightning_prune.recipe.schedules import Schedule


class Steering(ABC):
    """Moves the clock of the engine, and goes back to earlier weights in a training.

    Attributes:
        key: Key of the state in the state of the `PruningCallback`.
    """

    key: ClassVar[str]

    @abstractmethod
    def make_clock(self, schedule: Schedule) -> Clock:
        """Return the engine's clock of a schedule."""

    @abstractmethod
    def begin(self) -> None:
        """Take over the restored state, or start a new state; the engine is attached."""

    @abstractmethod
    def on_batch_start(self, model: LightningModule) -> None:
        """Go back to earlier weights if that is due."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return tensors on the CPU, numbers and strings, in dicts and lists."""

    def on_epoch_start(self, model: LightningModule) -> None:  # noqa: B027
        """Validate before the first step if that is due."""

    def on_validation_end(self, model: LightningModule) -> None:  # noqa: B027
        """Judge the validated model."""

    def end(self, model: LightningModule) -> None:  # noqa: B027
        """Leave the model to keep; the engine is still attached."""

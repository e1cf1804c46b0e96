"""An example of a model's input, seen in Lightning's sanity check or in the first step."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_prune.callbacks.namespace import LightningModule, Trainer
from lightning_prune.models.calls import Call, refuse_missing_example
from lightning_prune.models.examples import CallRecorder
from lightning_prune.recipe.recipe import Recipe


class SeenExample:
    """The first call of a model in the sanity check, or else in the first step of training.

    A resumed training makes no sanity check, so the call is saved.

    Attributes:
        call: The arguments of a single sample; None if the model was not called, or has an
            ``example_input_array``.
    """

    def __init__(self) -> None:
        self.call: Call | None = None
        self._recorder: CallRecorder | None = None

    @property
    def is_watching(self) -> bool:
        """Whether the next call is recorded, or the recorded call waits to be taken."""
        return self._recorder is not None

    def watch(self, model: LightningModule) -> None:
        """Record the next call, unless the model has an example."""
        self.call = None
        if model.example_input_array is None:
            self._recorder = CallRecorder(model, limit=1, samples=1)

    def stop(self) -> None:
        """Record no longer."""
        if self._recorder is not None:
            self._recorder.stop()
            self.call = next(iter(self._recorder.calls), None)
            self._recorder = None

    def share(self, trainer: Trainer) -> Call | None:
        """Return the call of the first process in all processes: a cost must be the same in all."""
        self.call = trainer.strategy.broadcast(self.call)
        return self.call

    def take_from_first_step(self, trainer: Trainer, model: LightningModule) -> Call:
        """Return the call of the first step, in which `watch` was on; the same in all processes.

        Raises:
            ValueError: If the step did not call ``forward``.
        """
        self.stop()
        call = self.share(trainer)
        if call is None:
            found = "no call of forward in the first training_step"
            refuse_missing_example(model, found, ", or give the argument example")
        return call

    def state_dict(self) -> dict[str, Any]:
        """Return the call, if it is made of tensors and plain values; else nothing."""
        if self.call is None or not _is_plain(list(self.call)):
            return {}
        return {"example": {"arguments": list(self.call.arguments), "keywords": self.call.keywords}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the call of an earlier training."""
        if (saved := state.get("example")) is not None:
            self.call = Call(tuple(saved["arguments"]), dict(saved["keywords"]))


def may_wait(recipe: Recipe, model: LightningModule) -> bool:
    """Whether a recipe needs an example that the first step of the training can show.

    A recipe that goes back to earlier weights needs the engine before the first step.
    """
    goes_back = recipe.rewind is not None or recipe.tolerance is not None
    return recipe.needs_example and model.example_input_array is None and not goes_back


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint holds a value without code of a user."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    return value is None or type(value) in (Tensor, bool, int, float, str)

"""An example of a model's input, seen in Lightning's sanity check."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_prune.callbacks.namespace import LightningModule, Trainer
from lightning_prune.models.calls import Call
from lightning_prune.models.examples import CallRecorder


class SeenExample:
    """The first call of a model in the sanity check, which a resumed training does not repeat.

    Attributes:
        call: The arguments of a single sample; None if the model was not called, or has an
            ``example_input_array``.
    """

    def __init__(self) -> None:
        self.call: Call | None = None
        self._recorder: CallRecorder | None = None

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

    def state_dict(self) -> dict[str, Any]:
        """Return the call, if it is made of tensors and plain values; else nothing."""
        if self.call is None or not _is_plain(list(self.call)):
            return {}
        return {"example": {"arguments": list(self.call.arguments), "keywords": self.call.keywords}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the call of an earlier training."""
        if (saved := state.get("example")) is not None:
            self.call = Call(tuple(saved["arguments"]), dict(saved["keywords"]))


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint holds a value without code of a user."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    return value is None or type(value) in (Tensor, bool, int, float, str)

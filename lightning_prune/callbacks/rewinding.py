"""Going back to an early step under the masks: lottery tickets and learning-rate rewinding."""

from copy import deepcopy
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_prune.callbacks.clock import make_trainer_clock, predict_moment
from lightning_prune.engine.pruner import Pruner
from lightning_prune.models.names import named_tensors
from lightning_prune.recipe.clocks import Clock
from lightning_prune.recipe.rewind import Rewind
from lightning_prune.recipe.schedules import Schedule
from lightning_prune.tensors.shards import is_sharded


class Rewinder:
    """Takes the snapshot of one training and puts it back in place.

    Masks change only where it lets them: at the first batch start after a step. So gradients that
    are being accumulated are all of the same weights.

    Args:
        rewind: What to go back with.
        pruner: The engine, not yet attached.
        trainer: The Trainer, at ``on_train_start``.
        state: A restored `state_dict`; empty if there is none.
        resumed: Whether the count of steps goes on from a checkpoint.

    Raises:
        ValueError: If the training cannot be rewound.
    """

    def __init__(
        self,
        rewind: Rewind,
        pruner: Pruner,
        trainer: Trainer,
        *,
        state: dict[str, Any],
        resumed: bool,
    ) -> None:
        self.rewind, self.pruner, self.trainer = rewind, pruner, trainer
        _refuse(trainer)
        self._to = 0 if trainer.fast_dev_run else rewind.to  # type: ignore[attr-defined]
        self._clock = make_trainer_clock(trainer, pruner.recipe.schedule, is_resumed=resumed)
        self._moment = -1.0
        self._point: float | None = None
        self._steps: int | None = None
        self._state = dict(state)
        self._recipe = {"to": self._to, "what": rewind.what, "optimizer": rewind.optimizer}

    def clock(self, schedule: Schedule) -> Clock:
        """Return the engine's clock: it stands still between the moments that can be rewound."""
        return lambda done: self._moment

    def begin(self) -> None:
        """Take over what was kept; refuse what cannot come to a snapshot in time."""
        (done,) = self.pruner.steps
        resets = self.rewind.optimizer == "reset"
        if self._state.get("recipe") != self._recipe:
            if done > (0 if resets else self._to):
                raise ValueError(
                    f"need a checkpoint that was written with the same rewind, {self._recipe}, got "
                    f"one of step {done} with {self._state.get('recipe', 'none')}"
                )
            state = _only_optimizer(self.trainer).state_dict()["state"]
            start = _copy(state) if resets else {}
            self._state = {"recipe": self._recipe, "optimizer": start}
        if self._has_snapshot:
            return
        moment = predict_moment(self.trainer, self.pruner.recipe.schedule, self._to, done)
        if moment is not None and self.pruner.recipe.schedule.last_due(moment) is not None:
            raise ValueError(_too_late(self._to))

    def on_batch_start(self, model: LightningModule) -> None:
        """Keep what is there if it is step ``to``; update the masks and go back if that is due."""
        optimizer = _only_optimizer(self.trainer)
        self.pruner.follow([optimizer])
        (steps,) = self.pruner.steps
        if steps >= self._to and not self._has_snapshot:
            self._keep(model, optimizer)
        if steps == self._steps:  # gradients are being accumulated
            return
        self._steps = steps
        self._moment = self._clock(steps)
        point = self.pruner.recipe.schedule.last_due(self._moment)
        if point is None or point == self._point:
            return
        if not self._has_snapshot:
            raise RuntimeError(_too_late(self._to))
        self._point = point
        optimizer.zero_grad()  # they are of the weights before
        before = self.pruner.sparsity
        self.pruner.update(optimizer)
        if self.pruner.sparsity != before:
            self._go_back(model, optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept: tensors on the CPU, numbers, strings and what they are nested in."""
        return self._state

    @property
    def _has_snapshot(self) -> bool:
        return "groups" in self._state

    def _keep(self, model: LightningModule, optimizer: Optimizer) -> None:
        state = optimizer.state_dict()
        if self.rewind.optimizer == "rewind":
            self._state["optimizer"] = _copy(state["state"])
        tensors = _initialized_tensors(model) if self.rewind.what == "weights" else {}
        self._state |= {
            "tensors": _copy(tensors),
            "groups": _copy(state["param_groups"]),
            "schedulers": [_copy(one.state_dict()) for one in _schedulers(self.trainer)],
        }

    def _go_back(self, model: LightningModule, optimizer: Optimizer) -> None:
        if self.rewind.what == "weights":
            _put_back(self._state["tensors"], _initialized_tensors(model), self._to)
        _put_back_optimizer(self._state["optimizer"], self._state["groups"], optimizer, self._to)
        states = self._state["schedulers"]
        for scheduler, state in zip(_schedulers(self.trainer), states, strict=True):
            scheduler.load_state_dict(deepcopy(state))
        self.pruner.mask(optimizer)


def _put_back(kept: dict[str, Tensor], tensors: dict[str, Tensor], to: int) -> None:
    """Copy what was kept into the tensors that are there."""
    shapes = {name: tensor.shape for name, tensor in kept.items()}
    for name, shape in {name: tensor.shape for name, tensor in tensors.items()}.items():
        if shapes.pop(name, None) != shape:
            shapes[name] = shape
    if shapes:
        raise RuntimeError(
            f"need the parameters and buffers of step {to} with rewind, got others by now: "
            f"{', '.join(sorted(shapes))}"
        )
    for name, tensor in tensors.items():
        tensor.detach().copy_(kept[name])


def _put_back_optimizer(
    gathered: dict[int, Any], kept: list[dict[str, Any]], optimizer: Optimizer, to: int
) -> None:
    """Give the optimizer what it had gathered, and its hyperparameters."""
    before = optimizer.param_groups
    if [len(g["params"]) for g in kept] != [len(g["params"]) for g in before]:
        raise RuntimeError(
            f"need the optimizer's parameters of step {to} with rewind, got others by now; "
            "give it all of them before"
        )
    # The optimizer will work in place on what it is given.
    optimizer.load_state_dict(deepcopy({"state": gathered, "param_groups": kept}))
    for old, new in zip(before, optimizer.param_groups, strict=True):
        for key, value in old.items():
            if isinstance(value, Tensor):  # a compiled step reads it where it is
                new[key] = value.copy_(new[key])


def _refuse(trainer: Trainer) -> None:
    """Raise ValueError for what rewinding would leave in a state that no one wants."""
    _only_optimizer(trainer)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if getattr(callback, "_average_model", None) is not None:
            raise ValueError(
                "need a training without averaged weights with rewind, got "
                f"{type(callback).__name__}: it would average weights from before and after"
            )
    for name, parameter in trainer.lightning_module.named_parameters():
        if is_sharded(parameter):
            raise ValueError(f"need parameters in one piece with rewind, got '{name}' in shards")


def _only_optimizer(trainer: Trainer) -> Optimizer:
    if len(trainer.optimizers) != 1:
        raise ValueError(
            f"need one optimizer with rewind, got {len(trainer.optimizers)}: each counts its own "
            "steps, so there is no one step to go back to"
        )
    return trainer.optimizers[0]


def _too_late(to: int) -> str:
    return (
        f"need a step before the first update of the masks with rewind, got to={to}; "
        "lower it, or let the schedule begin later"
    )


def _initialized_tensors(model: LightningModule) -> dict[str, Tensor]:
    """Return parameters and buffers by name.

    Raises:
        ValueError: If one has no shape yet.
    """
    tensors = named_tensors(model, remove_duplicate=True)
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise ValueError(
                f"need initialised parameters at the step to rewind to, got '{name}'; set to=1"
            )
    return tensors


def _schedulers(trainer: Trainer) -> list[Any]:
    return [config.scheduler for config in trainer.lr_scheduler_configs]


def _copy(value: Any) -> Any:
    """Return a copy on the CPU that shares nothing."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(inner) for inner in value)
    return deepcopy(value)

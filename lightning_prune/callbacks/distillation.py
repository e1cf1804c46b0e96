"""The dense model teaches the pruned one."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_prune.callbacks.teaching import FORWARD, Lesson, called, submodule
from lightning_prune.models.compiled import is_compiled


class DistillationCallback(Callback):
    r"""Lets the dense model teach the pruned one, without a change to the module's code.

    In each training step the teacher sees what the student sees, and this is added to the loss:

    .. math:: \lambda \Big( T^2 \, \mathrm{KL}\big(\sigma(z_t / T) \,\|\, \sigma(z_s / T)\big)
              + \sum_f w_f \, \overline{(h_{t,f} - h_{s,f})^2} \Big)

    where :math:`z` are the logits of teacher and student, :math:`\sigma` the softmax over the
    classes, :math:`h_f` the outputs of the module :math:`f`, and both terms are means over all that
    is not a class. Soft targets: Hinton et al., "Distilling the Knowledge in a Neural Network"
    (2015), https://arxiv.org/abs/1503.02531; the :math:`T^2` keeps the gradients' size when
    :math:`T` changes. Features: Romero et al., "FitNets" (2015), https://arxiv.org/abs/1412.6550,
    without a regressor between them, since a pruned layer has the shape of the dense one.

    The teacher is a copy of the module with the weights of a checkpoint. It is not part of the
    module: no parameter, no optimizer and no ``state_dict`` knows it. It runs once a batch, in the
    precision of the student, as in evaluation (no dropout, the running statistics of its
    normalisations, which stay as they are) and leaves torch's random generators alone.

    The loss is added to what ``training_step`` returns, by wrapping it from the start to the end of
    a batch, so that accumulation, gradient scaling, clipping and DDP treat it as the user's own.
    What the module logs itself stays its own loss; the term in the large brackets is logged as
    ``distillation_loss``. Hooks are on the student only while its ``training_step`` runs.

    Args:
        teacher: Path of the checkpoint that teaches, written by Lightning or a plain
            ``state_dict``; its names must be exactly those of the module. None takes a snapshot of
            the module when training starts, so it must *already be trained* then: a snapshot of
            random weights teaches noise. A snapshot is saved in each checkpoint (as much as the
            module's ``state_dict``) and restored when training is resumed; a file is not, so keep
            it.
        weight: Weight :math:`\lambda` of the distillation loss, not negative.
        temperature: Temperature :math:`T` of the soft targets, positive; None compares no logits.
        features: Names of modules whose outputs (of a tuple, the first) are matched as well, or a
            mapping of them to weights :math:`w_f`, not negative. They are called inside ``output``;
            ``"forward"`` is what the module itself returns.
        output: What is run: ``"forward"`` of the LightningModule, or a module by name. It must be
            given the data, not what trained layers made of it, and return logits (a tensor, or
            something with ``logits``).
        class_dim: Dimension of the classes: 1 for ``(N, C, ...)``, -1 for ``(N, ..., C)``; may be
            left out for logits of one or two dimensions.

    Raises:
        ValueError: If an argument is out of range, or neither logits nor features are compared;
            when training starts, under manual optimization, on shards (FSDP, DeepSpeed,
            ModelParallelStrategy), with compiled modules, or if the checkpoint or a name does not
            fit the module; in the first batch, if ``output`` or a feature was not called, or does
            not return or is not given what it must.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_prune import PruningCallback
        >>> distillation = DistillationCallback(teacher="dense.ckpt", temperature=2.0, output="net")
        >>> trainer = Trainer(
        ...     callbacks=[PruningCallback(sparsity=0.95), distillation],
        ...     logger=False, accelerator="cpu",
        ... )
        >>> DistillationCallback(temperature=0)
        Traceback (most recent call last):
        ValueError: need temperature > 0, or null to compare no logits, got temperature=0
    """

    def __init__(
        self,
        teacher: str | Path | None = None,
        weight: float = 1.0,
        temperature: float | None = 4.0,
        features: list[str] | dict[str, float] | None = None,
        output: str = FORWARD,
        class_dim: int | None = None,
    ) -> None:
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(
                "need temperature > 0, or null to compare no logits, got "
                f"temperature={temperature!r}"
            )
        names = features or {}
        weights = dict(names) if isinstance(names, Mapping) else dict.fromkeys(names, 1.0)
        _refuse_negative(weight=weight, **{f"features[{name!r}]": w for name, w in weights.items()})
        if temperature is None and not weights:
            raise ValueError("need a temperature or features, got temperature=None, features=None")
        self.teacher = teacher
        self.weight = weight
        self.temperature = temperature
        self.features = weights
        self.output = output
        self.class_dim = class_dim
        self._model: nn.Module | None = None  # who teaches
        self._origin: dict[str, str] = {}  # path and digest, if from a file
        # What the next training starts from; empty if afresh, None once it has begun.
        self._restored: dict[str, Any] | None = None
        self._unwrap: Callable[[], None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, before anything has happened."""
        if stage != "fit":
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if (others := sum(isinstance(c, DistillationCallback) for c in callbacks)) > 1:
            raise ValueError(f"need one DistillationCallback in a Trainer, got {others}")
        if not pl_module.automatic_optimization:
            raise ValueError(
                "need a training_step that returns its loss, got automatic_optimization=False, "
                "where it calls backward itself; let Lightning optimize, or add the loss there"
            )
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
            raise ValueError(
                "need a strategy that leaves parameters whole, got "
                f"{type(trainer.strategy).__name__}; use DDP or one device"
            )
        self._restored = {}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the accelerator; go back to what was there before a fit with nothing to train."""
        self._restored = self._restored or None
        if self._model is not None:
            self._model.to("cpu")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's teacher until training starts; one that teaches stays."""
        if self._restored is not None:
            self._restored = state_dict

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher that came from a snapshot, or where it came from."""
        if self._restored is not None:
            return self._restored
        if self._model is None or self._origin:
            return dict(self._origin)
        return {"teacher": self._model.state_dict()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the teacher, where weights and restored states are there under every strategy."""
        _refuse_compiled(pl_module)
        for name in (self.output, *self.features):
            submodule(pl_module, name)
        with _without_our_hooks(pl_module):
            model = deepcopy(pl_module)
        origin = self._teach(model, self._restored or {})
        self._model = model.requires_grad_(False).eval()
        self._origin, self._restored = origin, None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let `training_step` return the sum of both losses."""
        self._leave()
        step, own = pl_module.training_step, vars(pl_module).get("training_step")

        @wraps(step)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            assert self._model is not None
            lesson = Lesson(
                pl_module,
                self._model,
                output=self.output,
                features=self.features,
                temperature=self.temperature,
                class_dim=self.class_dim,
            )
            with lesson:
                output = step(*args, **kwargs)
            return self._with_distillation(pl_module, output, lesson.losses)

        def unwrap() -> None:
            if own is None:
                del pl_module.training_step
            else:
                pl_module.training_step = own  # type: ignore[method-assign]

        pl_module.training_step = training_step  # type: ignore[method-assign]
        self._unwrap = unwrap

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Leave the module as it was."""
        self._leave()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module as it was, also where a batch was skipped."""
        self._leave()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was."""
        self._restored = self._restored or None
        self._leave()

    def _leave(self) -> None:
        if self._unwrap is not None:
            self._unwrap()
            self._unwrap = None

    def _teach(self, model: nn.Module, restored: dict[str, Any]) -> dict[str, str]:
        """Give the copy the weights that teach, and return where they came from."""
        if self.teacher is None:
            if "path" in restored:
                raise ValueError(
                    f"need the teacher of the run that is resumed, got teacher=None; write "
                    f"teacher={restored['path']!r}"
                )
            if restored:
                model.load_state_dict(restored["teacher"])
            else:
                rank_zero_info(
                    "DistillationCallback: the teacher is a snapshot of the module as it is now, "
                    "which is of use only if it is trained already; otherwise name a checkpoint."
                )
            return {}
        path = str(self.teacher)
        state, digest = _loaded(path)
        if restored.get("path") == path and restored["digest"] != digest:
            raise ValueError(
                "need the teacher that the run was started with, got another one in "
                f"teacher={path!r}; restore the file, or give another teacher another path"
            )
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"need a checkpoint of this module, got teacher={path!r}: {error}"
            ) from error
        return {"path": path, "digest": digest}

    def _with_distillation(
        self, pl_module: LightningModule, output: Any, losses: list[Tensor]
    ) -> Any:
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            return output  # a step that is skipped, or an error of which Lightning tells
        if not losses:
            owners = [f"'{n}'" for n, child in pl_module.named_children() if _learns(child)]
            raise ValueError(
                f"need a training_step that calls {called(self.output)} with gradients, got a "
                "batch without such a call; name the module that is given the data and returns "
                f"the logits as output: {', '.join(owners) or 'there is none'}"
            )
        distillation = torch.stack(losses).mean()
        pl_module.log("distillation_loss", distillation.detach(), on_step=True, on_epoch=False)
        total = loss + self.weight * distillation
        return {**output, "loss": total} if isinstance(output, Mapping) else total


def _refuse_negative(**weights: float) -> None:
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"need {name} >= 0, got {name}={weight!r}")


def _refuse_compiled(model: LightningModule) -> None:
    """Raise ValueError, naming the first, if a module is compiled: it would not see the hooks."""
    compiled = [
        name or type(model).__name__
        for name, module in model.named_modules()
        if is_compiled(module)
    ]
    if model._compiler_ctx is not None:
        compiled.insert(0, type(model).__name__)
    if compiled:
        raise ValueError(
            f"need modules that are not compiled, got '{compiled[0]}'; train without torch.compile"
        )


@contextmanager
def _without_our_hooks(model: nn.Module) -> Iterator[None]:
    """Take the hooks of this package off, so that nothing is gathered from a copy."""
    places = [
        hooks
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
    ]
    before = [dict(hooks) for hooks in places]
    for hooks in places:
        for key, hook in list(hooks.items()):
            if getattr(hook, "__module__", "").startswith("lightning_prune."):
                del hooks[key]
    try:
        yield
    finally:
        for hooks, all_hooks in zip(places, before, strict=True):
            hooks.clear()
            hooks.update(all_hooks)


def _loaded(path: str) -> tuple[dict[str, Tensor], str]:
    """Return the module's state in a checkpoint, and a digest of it."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    state: dict[str, Tensor] = checkpoint.get("state_dict", checkpoint)
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        if isinstance(state[name], Tensor):
            digest.update(state[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state, digest.hexdigest()


def _learns(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None

"""The dense model teaches the pruned model."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.callbacks.namespace import (
    LightningCallback,
    LightningModule,
    Trainer,
    is_lightning,
    rank_zero_info,
)
from lightning_prune.callbacks.teaching import FORWARD, TeachingStep, describe_call, find_module
from lightning_prune.deploy.checkpoints import read_checkpoint
from lightning_prune.engine.whole_copies import copy_whole
from lightning_prune.models.compiled import is_compiled

_FLATTENING = ("FSDPStrategy", "DeepSpeedStrategy")


class DistillationCallback(LightningCallback):
    r"""Lets the dense model teach the pruned model, without a change to the module's code.

    In each training step the teacher gets the student's inputs. The callback adds to the loss

    .. math:: \lambda \Big( T^2 \, \mathrm{KL}\big(\sigma(z_t / T) \,\|\, \sigma(z_s / T)\big)
              + \sum_f w_f \, \overline{(h_{t,f} - h_{s,f})^2} \Big)

    where :math:`z` are the logits of teacher and student, :math:`\sigma` the softmax over the
    classes, and :math:`h_f` the outputs of the module :math:`f`. The soft-target term is a mean
    over all dimensions but the classes; a feature term is a mean over all entries. Soft targets:
    Hinton et al., "Distilling the Knowledge in a Neural Network" (2015),
    https://arxiv.org/abs/1503.02531; the factor :math:`T^2` keeps the size of the gradients when
    :math:`T` changes. Features: Romero et al., "FitNets" (2015), https://arxiv.org/abs/1412.6550,
    but without a regressor, since a pruned layer has the shape of the dense layer.

    The teacher is a copy of the module with the weights of a checkpoint. The teacher is not part of
    the module: the module's parameters, optimizers and ``state_dict`` do not contain it. The
    teacher runs once a batch, in the precision of the student and in evaluation mode: dropout is
    off, and batch normalization uses its running statistics and does not update them. The teacher
    leaves torch's random generators alone. Where FSDP2 or tensor parallelism shard the student,
    each process holds a whole teacher.

    The callback wraps ``training_step`` during each batch and adds the term to the returned loss.
    So accumulation, gradient scaling, clipping and DDP treat the sum as the user's own loss. The
    module still logs its own loss; the callback logs the term in the large brackets as
    ``distillation_loss``. Hooks are on the student only while ``training_step`` runs.

    Args:
        teacher: Path of the teacher's checkpoint, written by Lightning or a plain ``state_dict``;
            the names in it must equal the module's names. None takes a snapshot of the module when
            training starts. The module must *already be trained* then: a snapshot of random weights
            teaches noise. Each checkpoint contains the snapshot (as large as the module's
            ``state_dict``), and a resumed training restores it. A checkpoint does not contain the
            file, so keep the file.
        weight: Weight :math:`\lambda` of the distillation loss, not negative.
        temperature: Temperature :math:`T` of the soft targets, positive; None compares no logits.
        features: Names of modules whose outputs (the first entry of a tuple) the student matches,
            or a mapping of names to weights :math:`w_f`, not negative. ``output`` must call the
            modules; ``"forward"`` names the output of the LightningModule.
        output: The compared call: ``"forward"`` of the LightningModule, or the name of a module.
            The inputs must be data, not the output of trained layers. The output must be logits: a
            tensor, or an object with ``logits``.
        class_dim: Dimension of the classes: 1 for ``(N, C, ...)``, -1 for ``(N, ..., C)``; not
            needed for logits with at most two dimensions.

    Raises:
        ValueError: If an argument is out of range, or if ``temperature`` and ``features`` are both
            None. Also when training starts: with manual optimization, flattened parameters (FSDP1,
            DeepSpeed) or compiled modules, or if the checkpoint or a name does not fit the module.
            Also in the first batch: if ``training_step`` did not call ``output``, if ``output`` did
            not call a feature, or if the inputs or outputs of a call do not fit.

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

    @check_arguments
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
        self._model: nn.Module | None = None  # The teacher.
        self._origin: dict[str, str] = {}  # Path and digest of the teacher's file, if any.
        # The state that the next training restores. It is empty for a new training, and None after
        # training has started.
        self._restored_state: dict[str, Any] | None = None
        self._unwrap: Callable[[], None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a Trainer or a module that distillation does not support."""
        if stage != "fit":
            return
        callbacks = trainer.callbacks  # type: ignore[union-attr]
        if (count := sum(isinstance(c, DistillationCallback) for c in callbacks)) > 1:
            raise ValueError(
                f"need one DistillationCallback in a Trainer, got {count}; remove the others"
            )
        if not pl_module.automatic_optimization:
            raise ValueError(
                "need a training_step that returns its loss, got automatic_optimization=False, "
                "where training_step calls backward; set automatic_optimization=True, or add the "
                "loss in training_step"
            )
        if is_lightning(trainer.strategy, *_FLATTENING):
            raise ValueError(
                "need a strategy that leaves parameters whole or shards each of them, got "
                f"{type(trainer.strategy).__name__}; use DDP, FSDP2 (ModelParallelStrategy) or a "
                "single device"
            )
        self._restored_state = {}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Move the teacher to the CPU; forget an empty state if training did not start."""
        self._restored_state = self._restored_state or None
        if self._model is not None:
            self._model.to("cpu")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's teacher until training starts; a running training ignores it."""
        if self._restored_state is not None:
            self._restored_state = state_dict

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of a snapshot, or the path and digest of the teacher's file."""
        if self._restored_state is not None:
            return self._restored_state
        if self._model is None or self._origin:
            return dict(self._origin)
        return {"teacher": self._model.state_dict()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the teacher; under every strategy, weights and restored states exist only now."""
        _refuse_compiled(pl_module)
        for name in (self.output, *self.features):
            find_module(pl_module, name)
        with _suspend_own_hooks(pl_module):
            model = copy_whole(pl_module)
        origin = self._load_teacher(model, self._restored_state or {})
        self._model = model.to(pl_module.device).requires_grad_(False).eval()
        self._origin, self._restored_state = origin, None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let `training_step` return the sum of both losses."""
        self._unwrap_step()
        step, override = pl_module.training_step, vars(pl_module).get("training_step")

        @wraps(step)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            assert self._model is not None
            teaching = TeachingStep(
                pl_module,
                self._model,
                output=self.output,
                features=self.features,
                temperature=self.temperature,
                class_dim=self.class_dim,
            )
            with teaching:
                output = step(*args, **kwargs)
            return self._add_distillation(pl_module, output, teaching.losses)

        def unwrap() -> None:
            if override is None:
                del pl_module.training_step
            else:
                pl_module.training_step = override  # type: ignore[method-assign]

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
        """Give the module its own `training_step` again."""
        self._unwrap_step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module its own `training_step` again, also after a skipped batch."""
        self._unwrap_step()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the module its own `training_step` again."""
        self._restored_state = self._restored_state or None
        self._unwrap_step()

    def _unwrap_step(self) -> None:
        if self._unwrap is not None:
            self._unwrap()
            self._unwrap = None

    def _load_teacher(self, model: nn.Module, restored: dict[str, Any]) -> dict[str, str]:
        """Load the teacher's weights into the copy; return the path and digest of their file."""
        if self.teacher is None:
            if "path" in restored:
                raise ValueError(
                    "need the teacher of the run that is resumed, got teacher=None; write "
                    f"teacher={restored['path']!r}"
                )
            if restored:
                model.load_state_dict(restored["teacher"])
            else:
                rank_zero_info(
                    "DistillationCallback: the teacher is a snapshot of the module as it is now. "
                    "Use a snapshot only of a trained module; otherwise name a checkpoint."
                )
            return {}
        path = str(self.teacher)
        state, digest = _load_state(path)
        if restored.get("path") == path and restored["digest"] != digest:
            raise ValueError(
                "need the teacher that the run was started with, got another file in "
                f"teacher={path!r}; restore the file, or give another teacher another path"
            )
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"need a checkpoint of this module, got teacher={path!r}: {error}"
            ) from error
        return {"path": path, "digest": digest}

    def _add_distillation(
        self, pl_module: LightningModule, output: Any, losses: list[Tensor]
    ) -> Any:
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            return output  # training_step skips the batch, or Lightning will raise an error.
        if not losses:
            owners = [f"'{n}'" for n, child in pl_module.named_children() if _has_parameters(child)]
            raise ValueError(
                f"need a training_step that calls {describe_call(self.output)} with gradients, got "
                "a batch without this call; name as output the module that is given the data and "
                f"returns the logits: {', '.join(owners) or 'no module has parameters'}"
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
    """Raise ValueError if a module is compiled: compiled code does not call the hooks."""
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
def _suspend_own_hooks(model: nn.Module) -> Iterator[None]:
    """Remove the hooks of this package for a while, so that a copy gathers nothing."""
    places = [
        hooks
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
    ]
    saved = [dict(hooks) for hooks in places]
    for hooks in places:
        for key, hook in list(hooks.items()):
            if getattr(hook, "__module__", "").startswith("lightning_prune."):
                del hooks[key]
    try:
        yield
    finally:
        for hooks, all_hooks in zip(places, saved, strict=True):
            hooks.clear()
            hooks.update(all_hooks)


def _load_state(path: str) -> tuple[dict[str, Tensor], str]:
    """Return the module's state in a checkpoint, and the SHA-256 digest of the state."""
    checkpoint = read_checkpoint(path, argument="teacher")
    state: dict[str, Tensor] = checkpoint.get("state_dict", checkpoint)
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        if isinstance(state[name], Tensor):
            digest.update(state[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state, digest.hexdigest()


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None

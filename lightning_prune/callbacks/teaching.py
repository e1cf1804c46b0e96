"""A single training step of a student under a teacher."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_prune.models.trees import find_tensors
from lightning_prune.models.undisturbed import keep_torch_generators

FORWARD = "forward"


def compute_soft_target_loss(
    student: Tensor, teacher: Tensor, *, temperature: float, class_dim: int | None = None
) -> Tensor:
    r"""Return the loss of logits against soft targets, as a mean over all other dimensions.

    .. math:: T^2 \, \mathrm{KL}\big(\sigma(z_t / T) \,\|\, \sigma(z_s / T)\big)

    Args:
        student: Logits :math:`z_s`.
        teacher: Logits :math:`z_t` of the same shape.
        temperature: Temperature :math:`T`, positive.
        class_dim: Dimension of the classes; by default the last dimension of logits with at most
            two dimensions.

    Raises:
        ValueError: If the logits have more than two dimensions and ``class_dim`` is None.

    Examples:
        >>> even, sure = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1e9]])
        >>> round(compute_soft_target_loss(even, sure, temperature=2.0).item(), 4)  # 4 log(2)
        2.7726
    """
    if class_dim is None:
        if student.ndim > 2:
            raise ValueError(
                "need class_dim for logits of more than two dimensions, got class_dim=None for "
                f"{tuple(student.shape)}; write 1 for (N, C, ...) or -1 for (N, ..., C)"
            )
        class_dim = -1
    log_student = torch.log_softmax(_widen(student) / temperature, class_dim)
    log_teacher = torch.log_softmax(_widen(teacher) / temperature, class_dim)
    divergence = nn.functional.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return divergence.sum(class_dim).mean() * temperature**2


class TeachingStep:
    """Compares student and teacher at each call of the output, while hooks are on the student.

    The hooks compute a loss as soon as the student returns an output. Later code may change the
    output in place.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        output: str,
        features: Mapping[str, float],
        temperature: float | None,
        class_dim: int | None,
    ) -> None:
        self.student, self.teacher = student, teacher
        self.output, self.features = output, features
        self.temperature, self.class_dim = temperature, class_dim
        self.losses: list[Tensor] = []  # A loss for each call.
        self._handles: list[RemovableHandle] = []
        self._teacher_output: Any = None
        self._teacher_features: dict[str, list[Tensor]] = {}
        self._feature_losses: dict[str, list[Tensor]] | None = None  # None outside of a call.

    def __enter__(self) -> "TeachingStep":
        owner = find_module(self.student, self.output)
        # Other hooks may change the inputs. The teacher has them too, so this hook runs first.
        handle = owner.register_forward_pre_hook(self._start_call, prepend=True, with_kwargs=True)
        self._handles.append(handle)
        for name in self.features:
            module = find_module(self.student, name)
            self._handles.append(module.register_forward_hook(self._make_match_hook(name)))
        self._handles.append(owner.register_forward_hook(self._finish_call))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _start_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        tensors = find_tensors((args, kwargs))
        if any(tensor.grad_fn is not None for tensor in tensors):
            raise ValueError(
                f"need {describe_call(self.output)} to be given data, got the output of layers "
                "that are trained; name as output a module that contains those layers"
            )
        versions = [tensor._version for tensor in tensors if not tensor.is_inference()]
        self._teacher_output = self._run_teacher(args, kwargs)
        if versions != [tensor._version for tensor in tensors if not tensor.is_inference()]:
            raise ValueError(
                f"need {describe_call(self.output)} to leave its inputs as they are, got an input "
                "that the module has changed in place; make the module return a new tensor"
            )
        self._feature_losses = {name: [] for name in self.features}

    @torch.no_grad()
    def _run_teacher(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the output of the teacher, and keep the teacher's features."""
        self._teacher_features = {name: [] for name in self.features}
        handles = [
            find_module(self.teacher, name).register_forward_hook(self._make_keep_hook(name))
            for name in self._teacher_features
        ]
        try:
            with keep_torch_generators(next(self.teacher.parameters()).device):
                output = find_module(self.teacher, self.output)(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        for name, features in self._teacher_features.items():
            if not features:
                raise ValueError(
                    f"need features that are called inside {describe_call(self.output)}, got "
                    f"'{name}', which was not called there; name a module inside, or another output"
                )
        return output

    def _make_keep_hook(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            # The next module may change the feature in place.
            self._teacher_features[name].append(_find_feature(output, name).clone())

        return keep

    def _make_match_hook(self, name: str) -> Callable[..., None]:
        def match(module: nn.Module, args: Any, output: Any) -> None:
            if self._feature_losses is None:
                return
            losses, targets = self._feature_losses[name], self._teacher_features[name]
            if len(losses) < len(targets):
                feature, target = _find_feature(output, name), targets[len(losses)]
                _refuse_other_shape(feature, target, f"the feature '{name}'")
                losses.append((_widen(feature) - _widen(target)).square().mean())
            else:
                self._refuse_calls(name, f"more than {len(targets)}")

        return match

    def _finish_call(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._feature_losses is None:
            return
        terms = []
        if self.temperature is not None:
            logits = _find_logits(output, self.output)
            targets = _find_logits(self._teacher_output, self.output)
            _refuse_other_shape(logits, targets, describe_call(self.output))
            loss = compute_soft_target_loss(
                logits, targets, temperature=self.temperature, class_dim=self.class_dim
            )
            terms.append(loss)
        for name, losses in self._feature_losses.items():
            if len(losses) < len(self._teacher_features[name]):
                self._refuse_calls(name, f"{len(losses)} of {len(self._teacher_features[name])}")
            terms.append(self.features[name] * torch.stack(losses).mean())
        self.losses.append(torch.stack(terms).sum())
        self._teacher_output, self._feature_losses = None, None

    def _refuse_calls(self, name: str, calls: str) -> None:
        raise ValueError(
            f"need a feature that student and teacher call equally often, got '{name}', which the "
            f"student called {calls} times; leave '{name}' out of features"
        )


def find_module(model: nn.Module, name: str) -> nn.Module:
    """Return a module by name, or the model for ``"forward"``.

    Raises:
        ValueError: If no module has the name. The message lists the names of all modules.
    """
    if name == FORWARD:
        return model
    try:
        return model.get_submodule(name)
    except AttributeError:
        names = ", ".join(f"'{name}'" for name, _ in model.named_modules() if name)
        raise ValueError(f"need '{FORWARD}' or a module's name, got '{name}': {names}") from None


def _find_logits(output: Any, name: str) -> Tensor:
    logits = output.get("logits") if isinstance(output, Mapping) else output
    logits = getattr(logits, "logits", logits)
    if not isinstance(logits, Tensor):
        raise ValueError(
            "need a tensor of logits, or an object with logits, from "
            f"{describe_call(name)}, got {type(output).__name__}; name another output, or write "
            "temperature=None to match only features"
        )
    return logits


def _find_feature(output: Any, name: str) -> Tensor:
    first = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(first, Tensor):
        raise ValueError(
            f"need a tensor, or a tuple that begins with a tensor, from the feature '{name}', got "
            f"{type(output).__name__}; name another module as a feature"
        )
    return first


def _refuse_other_shape(student: Tensor, teacher: Tensor, name: str) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"need outputs of one shape from {name}, got {tuple(student.shape)} of the student and "
            f"{tuple(teacher.shape)} of the teacher; name a module whose output tensor parallelism "
            "does not cut"
        )


def _widen(tensor: Tensor) -> Tensor:
    """Return at least single precision: a mean of squares overflows in half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def describe_call(name: str) -> str:
    """Return the words by which an error names a called module."""
    return "self.forward (output='forward')" if name == FORWARD else f"'{name}' (output={name!r})"

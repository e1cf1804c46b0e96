"""What happens in one training step under a teacher."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_prune.models.trees import find_tensors
from lightning_prune.models.undisturbed import keep_torch_generators

FORWARD = "forward"


def soft_target_loss(
    student: Tensor, teacher: Tensor, *, temperature: float, class_dim: int | None = None
) -> Tensor:
    r"""Return what logits lose against soft targets, averaged over all but the classes.

    .. math:: T^2 \, \mathrm{KL}\big(\sigma(z_t / T) \,\|\, \sigma(z_s / T)\big)

    Args:
        student: Logits :math:`z_s`.
        teacher: Logits :math:`z_t` of the same shape.
        temperature: Temperature :math:`T`, positive.
        class_dim: Dimension of the classes; the last one by default, if there are at most two.

    Raises:
        ValueError: If it is not known which dimension the classes have.

    Examples:
        >>> even, sure = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1e9]])
        >>> round(soft_target_loss(even, sure, temperature=2.0).item(), 4)  # 4 log(2)
        2.7726
    """
    if class_dim is None:
        if student.ndim > 2:
            raise ValueError(
                "need class_dim for logits of more than two dimensions, got class_dim=None for "
                f"{tuple(student.shape)}; write 1 for (N, C, ...) or -1 for (N, ..., C)"
            )
        class_dim = -1
    is_now = torch.log_softmax(_single(student) / temperature, class_dim)
    should_be = torch.log_softmax(_single(teacher) / temperature, class_dim)
    divergence = nn.functional.kl_div(is_now, should_be, reduction="none", log_target=True)
    return divergence.sum(class_dim).mean() * temperature**2


class Lesson:
    """Compares student and teacher at each call of the output, while hooks are on the student.

    Losses are computed where an output appears, before anyone can change it in place.
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
        self.losses: list[Tensor] = []  # one a call
        self._handles: list[RemovableHandle] = []
        self._answer: Any = None
        self._taught: dict[str, list[Tensor]] = {}
        self._matched: dict[str, list[Tensor]] | None = None  # None outside of a call

    def __enter__(self) -> "Lesson":
        asked = submodule(self.student, self.output)
        # Ahead of the hooks that change inputs, which the teacher has as well.
        before = asked.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True)
        self._handles.append(before)
        for name in self.features:
            module = submodule(self.student, name)
            self._handles.append(module.register_forward_hook(self._match(name)))
        self._handles.append(asked.register_forward_hook(self._after))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        tensors = find_tensors((args, kwargs))
        if any(tensor.grad_fn is not None for tensor in tensors):
            raise ValueError(
                f"need {called(self.output)} to be given data, got the output of layers "
                f"that are trained; name as output a module that contains them"
            )
        versions = [tensor._version for tensor in tensors if not tensor.is_inference()]
        self._answer = self._ask(args, kwargs)
        if versions != [tensor._version for tensor in tensors if not tensor.is_inference()]:
            raise ValueError(
                f"need {called(self.output)} to leave its inputs as they are, got one "
                "that it has changed in place"
            )
        self._matched = {name: [] for name in self.features}

    @torch.no_grad()
    def _ask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the teacher, and keep its features."""
        self._taught = {name: [] for name in self.features}
        handles = [
            submodule(self.teacher, name).register_forward_hook(self._keep(name))
            for name in self._taught
        ]
        try:
            with keep_torch_generators(next(self.teacher.parameters()).device):
                answer = submodule(self.teacher, self.output)(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        for name, kept in self._taught.items():
            if not kept:
                raise ValueError(
                    f"need features that are called inside {called(self.output)}, got "
                    f"'{name}', which was not"
                )
        return answer

    def _keep(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            # What comes next may change it in place.
            self._taught[name].append(_feature(output, name).clone())

        return keep

    def _match(self, name: str) -> Callable[..., None]:
        def match(module: nn.Module, args: Any, output: Any) -> None:
            if self._matched is None:
                return
            matched, taught = self._matched[name], self._taught[name]
            if len(matched) < len(taught):
                kept = _single(taught[len(matched)])
                matched.append((_single(_feature(output, name)) - kept).square().mean())
            else:
                self._refuse_calls(name, f"more than {len(taught)}")

        return match

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._matched is None:
            return
        terms = []
        if self.temperature is not None:
            loss = soft_target_loss(
                _logits(output, self.output),
                _logits(self._answer, self.output),
                temperature=self.temperature,
                class_dim=self.class_dim,
            )
            terms.append(loss)
        for name, matched in self._matched.items():
            if len(matched) < len(self._taught[name]):
                self._refuse_calls(name, f"{len(matched)} of {len(self._taught[name])}")
            terms.append(self.features[name] * torch.stack(matched).mean())
        self.losses.append(torch.stack(terms).sum())
        self._answer, self._matched = None, None

    def _refuse_calls(self, name: str, calls: str) -> None:
        raise ValueError(
            f"need a feature that student and teacher call equally often, got '{name}', which the "
            f"student called {calls} times"
        )


def submodule(model: nn.Module, name: str) -> nn.Module:
    """Return a module by name, or the model for ``"forward"``.

    Raises:
        ValueError: If there is none of that name; with those that there are.
    """
    if name == FORWARD:
        return model
    try:
        return model.get_submodule(name)
    except AttributeError:
        names = ", ".join(f"'{name}'" for name, _ in model.named_modules() if name)
        raise ValueError(f"need '{FORWARD}' or a module's name, got '{name}': {names}") from None


def _logits(output: Any, name: str) -> Tensor:
    logits = output.get("logits") if isinstance(output, Mapping) else output
    logits = getattr(logits, "logits", logits)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"need a tensor of logits, or something with logits, from {called(name)}, got "
            f"{type(output).__name__}; name another output, or write temperature=None to match "
            "only features"
        )
    return logits


def _feature(output: Any, name: str) -> Tensor:
    first = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(first, Tensor):
        raise ValueError(
            f"need a tensor, or a tuple that begins with one, from the feature '{name}', got "
            f"{type(output).__name__}"
        )
    return first


def _single(tensor: Tensor) -> Tensor:
    """Return at least single precision: a mean of squares overflows in half."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def called(name: str) -> str:
    """Return how an error names what is called."""
    return "self.forward (output='forward')" if name == FORWARD else f"'{name}' (output={name!r})"

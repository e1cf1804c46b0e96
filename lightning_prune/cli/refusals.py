"""The errors that are a single line for the user; all others show a traceback."""

import re
import sys
from types import TracebackType

from lightning_prune.arguments.words import suggest
from lightning_prune.callbacks.namespace import LIGHTNING, is_lightning
from lightning_prune.cli.errors import is_refusal

_OURS = "lightning_prune"
_NOT_SAVED = re.compile(r"monitor='([^']+)'\)` could not find .* metrics: \[([^\]]*)\]")
_NOT_AVAILABLE = re.compile(r"metric `([^`]+)` which is not available.* following: (.*)$")
_LIBRARIES = {_OURS, *LIGHTNING, "fsspec", "jsonargparse", "packaging", "tensorboard", "torch"}


def describe_refusal(error: Exception, ckpt_path: object) -> str | None:
    """Return an error in a line; None if the error needs a traceback.

    An error that has passed through code outside of Lightning, torch and this package needs a
    traceback: it may be a bug in the user's model or data. Of the other errors, these are a line:

    - an error of this package that reads ``need ..., got ...``;
    - an error of the classes with which Lightning refuses a Trainer, a model or a moment;
    - any error while Lightning restores a checkpoint;
    - an error of the operating system, such as a full disk.

    Args:
        error: The error, with the traceback from the command on.
        ckpt_path: The checkpoint of the command.
    """
    frames = _list_frames(error.__traceback__)
    packages = [module.partition(".")[0] for module, _ in frames]
    if not set(packages) <= _LIBRARIES | sys.stdlib_module_names:
        return None
    message = " ".join(str(error).split())
    if packages[-1] == _OURS and is_refusal(message):
        return message
    if any(_restores(module, function) for module, function in frames):
        reason = f"{type(error).__name__}: {message}"
        if isinstance(error, IsADirectoryError):
            reason = "the folder of a distributed checkpoint; name the strategy that has written it"
        return f"need a checkpoint of this model and Trainer, got ckpt_path='{ckpt_path}': {reason}"
    if isinstance(error, OSError):
        return message
    is_refused = isinstance(error, ValueError | RuntimeError) or is_lightning(
        error, "MisconfigurationException"
    )
    return _guess_metric(message) if packages[-1] in LIGHTNING and is_refused else None


def _guess_metric(message: str) -> str:
    """Return a message; if a metric is not logged, with the closest of the logged metrics."""
    for pattern in (_NOT_SAVED, _NOT_AVAILABLE):
        if found := pattern.search(message):
            logged = re.findall(r"[^\s,'`\[\]]+", found[2])
            return message + suggest(found[1], logged)
    return message


def _list_frames(traceback: TracebackType | None) -> list[tuple[str, str]]:
    """Return the module and the function of each frame, the innermost last."""
    frames = []
    while traceback is not None:
        frame = traceback.tb_frame
        frames.append((frame.f_globals.get("__name__", ""), frame.f_code.co_name))
        traceback = traceback.tb_next
    return frames


def _restores(module: str, function: str) -> bool:
    """Whether a function of Lightning reads a checkpoint."""
    return module.endswith(".trainer.connectors.checkpoint_connector") and (
        "restore" in function or "resume" in function
    )

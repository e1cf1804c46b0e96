"""The commands that a user may want after a command, printed when the command has ended."""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_prune.callbacks.namespace import Trainer, is_lightning
from lightning_prune.cli.formats import name_beside
from lightning_prune.cli.help import PROGRAM
from lightning_prune.cli.loading import ENDINGS, name_output
from lightning_prune.cli.pruning_options import take_options

_CONFIG_AND_MODEL = re.compile(r"-c$|--(?:config|model|data)\b")
_READERS = {
    "onnx": "onnxruntime.InferenceSession('{}')",
    "executorch": "executorch.runtime.Runtime.get().load_program('{}')",
    "sparse": "lightning_prune.load_sparse('{}')",
}


def describe_next_steps(
    command: str, trainer: Trainer, options: Mapping[str, Any], arguments: Sequence[str]
) -> list[str]:
    """Return a line for each step that may come next.

    Args:
        command: The command that has ended.
        trainer: The Trainer of this command.
        options: The options of this command alone, such as ``ckpt_path``.
        arguments: The command line. The options that name the model and the data are repeated.
    """
    kept, _ = take_options(_CONFIG_AND_MODEL, arguments)
    return [f"now: {step}" for step in _list_steps(command, trainer, options, kept)]


def _list_steps(
    command: str, trainer: Any, options: Mapping[str, Any], kept: Sequence[str]
) -> Iterator[str]:
    path: Any = options.get("ckpt_path")
    if command == "fit":
        yield from _list_boards(trainer)
        saver = trainer.checkpoint_callback
        path = saver and (saver.best_model_path or getattr(saver, "last_model_path", ""))
    if command in ENDINGS:
        path = options["output"] or name_output(path, command)
    if command == "export":
        file = options["output"] or name_beside(path, options["format"], options["precision"])
        yield f"{_READERS[options['format']].format(_shorten(file))} in Python"
    elif command in ("sensitivity", "search"):
        answers = Path(options["output"], f"{command}.yaml")
        yield _write_command("fit", *kept, "--pruning", _shorten(answers))
    elif path and Path(path).exists():
        following = {"prune": "fit", "reestimate": "test", "report": "export"}.get(
            command, "report"
        )
        if command == "shrink":
            loaded = f"torch.load('{_shorten(path)}', weights_only=True)"
            yield f"lightning_prune.adopt(model, {loaded}) in Python"
        yield _write_command(following, *kept, "--ckpt_path", _shorten(path))


def _list_boards(trainer: Any) -> Iterator[str]:
    """Yield a command for each folder of TensorBoard's curves."""
    loggers = [each for each in trainer.loggers if is_lightning(each, "TensorBoardLogger")]
    for folder in dict.fromkeys(_shorten(logger.root_dir) for logger in loggers):
        yield shlex.join([_find_program("tensorboard"), "--logdir", folder])


def _write_command(*words: str) -> str:
    return shlex.join([_find_program(PROGRAM), *words])


def _find_program(name: str) -> str:
    """Return a program as a shell finds it: by the name, or else beside this Python."""
    return name if shutil.which(name) else _shorten(Path(sys.executable).with_name(name))


def _shorten(path: object) -> str:
    """Return a path from the current directory on, if it is below."""
    if "://" in str(path):
        return str(path)
    whole, here = Path.cwd() / str(path), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else path)

"""Errors of a model's own code, or of an exporter, in the words of this package's errors."""

import traceback
from pathlib import Path

import torch

_LIBRARIES = tuple(Path(file).parent for file in (torch.__file__, Path(__file__).parent))


def describe_error(error: BaseException) -> str:
    r"""Return the type of an error and the first line of its message.

    Examples:
        >>> describe_error(ValueError("\nneed an image\nat line 3"))
        'ValueError: need an image'
        >>> describe_error(AssertionError())
        'AssertionError'
    """
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def locate_error(error: BaseException) -> str:
    """Return the last line of the model's own code that led to an error, as ``" at file:line"``.

    Lines of torch and of this package are passed over; the text is empty if there is no other.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if not any(Path(frame.filename).is_relative_to(folder) for folder in _LIBRARIES)
    ]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""

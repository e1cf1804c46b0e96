"""Errors of a model's own code, or of an exporter, in the words of this package's errors."""


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

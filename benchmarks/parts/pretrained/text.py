"""Real text that is on every machine: sentences from the docstrings of the standard library."""

import ast
import re
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

LEAST_WORDS, MOST_WORDS = 6, 40
FOLDS = 10  # a fold of the files is for tests
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Text(NamedTuple):
    """Sentences; those for tests come from other files, and in another order than written.

    Args:
        train: Sentences for calibration and training.
        test: Sentences for tests.
    """

    train: list[str]
    test: list[str]


def read_text(train: int, test: int, seed: int = 0) -> Text:
    """Return drawn sentences of the standard library.

    Args:
        train: Number of sentences for calibration and training, or fewer if there are fewer.
        test: Number of sentences for tests, or fewer if there are fewer.
        seed: Decides which sentences are drawn, and their order.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    splits: tuple[dict[str, None], dict[str, None]] = ({}, {})
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root)
        if not LEFT_OUT & set(name.parts):
            is_for_tests = zlib.crc32(name.as_posix().encode()) % FOLDS == 0
            splits[is_for_tests].update(dict.fromkeys(list_sentences(file.read_bytes())))
    known, unseen = splits[0], [each for each in splits[1] if each not in splits[0]]
    return Text(_draw(list(known), train, seed), _draw(unseen, test, seed))


def list_sentences(source: bytes) -> Iterator[str]:
    """Yield the sentences in the docstrings of a file; none if it is not Python.

    Examples:
        >>> source = b'"Close the file if it is open. Not so long."'
        >>> list(list_sentences(source))
        ['Close the file if it is open.']
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in strings
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return
    for node in ast.walk(tree):
        docstring = ast.get_docstring(node) if isinstance(node, _DOCUMENTED) else None
        for paragraph in re.split(r"\n\s*\n", docstring or ""):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
                if _is_prose(sentence):
                    yield sentence


def _is_prose(sentence: str) -> bool:
    is_ended = sentence.endswith(".") and sentence[0].isupper()
    return is_ended and LEAST_WORDS <= len(sentence.split()) <= MOST_WORDS


def _draw(sentences: list[str], number: int, seed: int) -> list[str]:
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(seed))
    return [sentences[index] for index in order[:number]]

"""Lets MkDocs draw the formulas of our docstrings, which are written in reStructuredText."""

import re
from typing import Any

import griffe

_BLOCK = re.compile(r"^( *)\.\. math::\s*(.+?)$(?=\n\s*\n)", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r":math:`(.+?)`", re.DOTALL)


class RstMath(griffe.Extension):
    """Rewrites ``.. math::`` and ``:math:`` for MathJax before the docstrings are rendered."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            text = _BLOCK.sub(r"\1$$\2$$", obj.docstring.value)
            obj.docstring.value = _INLINE.sub(r"$\1$", text)

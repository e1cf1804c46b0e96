"""What a builder of a model returns."""

from collections.abc import Callable
from typing import Any

from torch import nn

Built = tuple[nn.Module, Any]
"""A model with random weights, and an example of the arguments of ``forward``."""

Builder = Callable[[], Built]

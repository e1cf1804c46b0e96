"""What older versions of torch lack or get wrong, and the first version that is right."""

import re
from enum import Enum

import torch


class TorchFloor(Enum):
    """A purpose that the lowest torch of the package does not serve.

    The value is the first version that serves the purpose, and the purpose.
    """

    FORWARD_WITH_ATTRIBUTES = (
        "2.10",
        "trace a forward that sets attributes of a module, as the forward of nn.LSTM does",
    )
    ONNX_OF_NONE = "2.9", "write a module that returns None among the outputs as ONNX"
    PROCESSOR = "2.11", "find out whether this processor saturates products of 8 bits"
    UNEVEN_SHARDS = (
        "2.10",
        "gather a tensor in order that FSDP2 cuts after tensor parallelism into unequal parts",
    )
    SWA_CHECKPOINT = "2.10", "write a checkpoint of StochasticWeightAveraging that holds no code"

    @property
    def is_met(self) -> bool:
        """Whether the torch that runs serves the purpose."""
        return _numbers(torch.__version__) >= _numbers(self.value[0])

    @property
    def refusal(self) -> str:
        """The message for a torch that does not serve the purpose."""
        version, purpose = self.value
        return f"need torch>={version} to {purpose}, got torch=={torch.__version__}"

    def check(self, remedy: str = "") -> None:
        """Raise an error if the torch that runs does not serve the purpose.

        Args:
            remedy: What else the user can do.

        Raises:
            ValueError: If torch is older than the floor.
        """
        if not self.is_met:
            raise ValueError(f"{self.refusal}; {remedy}" if remedy else self.refusal)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))

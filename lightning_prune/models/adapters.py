"""Adapters: the small matrices that are trained beside a frozen layer, as in LoRA."""

import re

from lightning_prune.models.names import Descent

# The names of LoRA with DoRA (PEFT, loralib, torchtune, LitGPT, kohya), LoHa, LoKr and IA3.
_NAME = re.compile(
    r"lora_(embedding_)?[a-e]|lora_(down|up|mid|magnitude\w*)|(hada|lokr)_[wt]\w*|ia3_l",
    re.IGNORECASE,
)


def is_adapter(descent: Descent) -> bool:
    """Whether a parameter belongs to an adapter.

    Two signs show this. A module on the way, or the parameter, has an established name such as
    ``lora_A``, ``lora_magnitude_vector``, ``hada_w1_a``, ``lokr_w1`` or ``ia3_l``. Or a module on
    the way wraps another module as PEFT does, with ``adapter_layer_names`` and ``base_layer``, and
    the parameter is not in the ``base_layer``.

    Args:
        descent: The way from the model to the parameter.
    """
    return any(
        _NAME.fullmatch(name)
        or (
            name != "base_layer"
            and "base_layer" in module._modules
            and hasattr(module, "adapter_layer_names")
        )
        for module, name in descent
    )

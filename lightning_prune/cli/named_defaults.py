"""The names of the answers that a printed config leaves to the defaults."""

import re

from lightning_prune.recipe.recipe import Recipe

_CALLBACK = re.compile(
    r"class_path: lightning_prune\.PruningCallback\n( +)init_args:\n((?:\1 +.*\n)+)"
)
_REPAIR = re.compile(r"^repair:(?! null$)", re.MULTILINE)


def name_defaults(config: str) -> str:
    r"""Return a config with a comment at each answer of a `PruningCallback` that is null.

    Args:
        config: The config, as jsonargparse writes it.

    Examples:
        >>> lines = "class_path: lightning_prune.PruningCallback", "init_args:", "  pattern: null"
        >>> print(name_defaults("".join(f"  {line}\n" for line in lines)), end="")
          class_path: lightning_prune.PruningCallback
          init_args:
            pattern: null  # UnstructuredPattern
    """
    recipe = Recipe()
    answers = (recipe.schedule, recipe.pattern, recipe.chosen_criterion, recipe.chosen_allocation)
    keys = ("schedule", "pattern", "criterion", "allocation")
    names = {key: type(each).__name__ for key, each in zip(keys, answers, strict=True)}
    if _REPAIR.search(config):
        names["criterion"] = "the repair chooses"
    return _CALLBACK.sub(lambda found: _name_answers(found, names), config)


def _name_answers(found: re.Match[str], names: dict[str, str]) -> str:
    indent, answers = found[1] + "  ", found[2]
    if f"{indent}pattern: null\n" not in answers:
        names = {**names, "allocation": "the pattern chooses"}
    for key, name in names.items():
        line = f"{indent}{key}: null"
        answers = answers.replace(f"{line}\n", f"{line}  # {name}\n")
    return found[0].removesuffix(found[2]) + answers

"""The lines that a training under a tolerance says at each decision."""

from lightning_prune.engine.rounds import Rounds, Verdict


def describe_costs(rounds: Rounds, max_epochs: int | None) -> str:
    """Return what the rounds cost at most, before they begin."""
    tolerance = rounds.tolerance
    most = tolerance.count_validations(rounds.final)
    looks = tolerance.recovery + tolerance.patience
    length = f"{tolerance.recovery} to {looks}" if tolerance.patience else f"{looks}"
    plan = "" if max_epochs in (None, -1) else f"; the Trainer plans {max_epochs} epochs"
    return (
        f"up to {rounds.planned} rounds to sparsity {rounds.final:.4f}, and up to "
        f"{tolerance.halvings} rounds with half of the step. A round takes {length} validations, "
        f"and all take at most {most}, with one before the training{plan}"
    )


def describe_verdict(
    before: Rounds,
    after: Rounds,
    verdict: Verdict,
    metric: float,
    sparsities: tuple[float, float],
) -> str:
    """Return what a validation has decided; nothing if it has decided nothing.

    Args:
        before: The rounds before the decision.
        after: The rounds after the decision.
        verdict: The decision.
        metric: The metric of the validation.
        sparsities: The sparsity of the validated model, and of the last model that was kept.
    """
    validated, held = sparsities
    measured = f"{before.tolerance.monitor} {metric:.4f}"
    worst = f"{before.tolerance.find_worst(after.dense):.4f}"
    bound = f"{'at least' if before.tolerance.mode == 'max' else 'at most'} {worst}"
    if before.phase == "dense":
        if verdict == "train on":
            return ""
        return (
            f"the dense model has {measured}, and {bound} is allowed; {_describe_next(after, held)}"
        )
    if before.phase == "settled":
        return f"a better model at the same sparsity, {measured}" if verdict == "keep" else ""
    where = f"round {before.number} at sparsity {validated:.4f}"
    if verdict == "train on":
        return f"{where} recovers: {measured}, {bound} is allowed"
    word = "holds" if verdict == "keep" else "does not hold"
    return f"{where} {word}: {measured}, {bound} is allowed; {_describe_next(after, held)}"


def describe_end(rounds: Rounds, sparsity: float) -> str:
    """Return what the training has come to."""
    return (
        f"the model has sparsity {sparsity:.4f} and {rounds.tolerance.monitor} "
        f"{rounds.best:.4f}; {rounds.dense:.4f} when dense"
    )


def _describe_next(after: Rounds, held: float) -> str:
    if after.phase == "settled":
        return f"training goes on at sparsity {held:.4f}, the most that has held"
    return f"round {after.number} tries sparsity {after.sparsity:.4f}"

"""LAMP by its definition, in exact arithmetic: the twin of the search over bins."""

from fractions import Fraction


def rescale_lamp(scores):
    """Return each squared score over the sum of all squares at least as large, rounded once."""
    squares = [Fraction(score) ** 2 for score in scores.double().flatten().tolist()]
    left = sum(squares)
    quotients, number = {0: 0.0}, {}
    for square in squares:
        number[square] = number.get(square, 0) + 1
    for square in sorted(set(squares) - {0}):
        quotients[square] = float(square / left)
        left -= number[square] * square
    return [quotients[square] for square in squares]


def keep_by_lamp(pool, due):
    """Return how many of the ``due`` best atoms each tensor has, by a sort of all LAMP scores."""
    atoms = []
    for place, (name, tensor) in enumerate(pool.items()):
        scores = rescale_lamp(tensor.scores.masked_fill(~tensor.allowed, 0))
        bounds = zip(
            tensor.protected.flatten().tolist(), tensor.allowed.flatten().tolist(), strict=True
        )
        for (is_protected, is_allowed), score in zip(bounds, scores, strict=True):
            if is_allowed:
                atoms.append((not is_protected, -score, place, name))
    best = [name for *_, name in sorted(atoms)[:due]]
    return {name: best.count(name) for name in pool}

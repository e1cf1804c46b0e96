"""Times of layers, fitted to the measured latencies of models with a single narrow group."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lightning_prune.deploy.latency_table import LatencyTable, make_monotone
from lightning_prune.engine.channel_layers import ChannelLayer

Points = Sequence[tuple[float, float]]

_NOISE = 0.02  # of the latency: copies of a network differ as much by where they lie in memory
_TRUST = 0.5  # how far the time of a group may be from that by multiply-adds, as a fraction
_BEND = 0.25  # how far a width may be from the line to the dense model, as a fraction of the saving
_ALONE = 0.1  # of the time of a group's layers: activations and normalizations
_ROUNDS = 40


def fit_times(
    layers: Sequence[ChannelLayer], table: LatencyTable
) -> tuple[tuple[ChannelLayer, ...], dict[str, Points]]:
    r"""Return the layers with their times as work, and the curve of each group.

    A first guess gives each layer time in proportion to the multiply-adds, and each group a tenth
    more of its own. A group's time is then moved towards the measurements. How far depends on how
    much larger the saving is than the noise of a measurement: with the weight

    .. math:: w = \frac{\tau^2}{\tau^2 + \sigma^2}

    of a normal prior of deviation :math:`\tau` and noise of deviation :math:`\sigma = 0.02`. So a
    group that saves less than the noise keeps the guess.

    Args:
        layers: The layers, with multiply-adds as work.
        table: The measured latencies.

    Returns:
        The layers and a layer for each group's own time, as fractions of the dense latency, and for
        each group pairs of a number of channels and the fraction of the work that remains.
    """
    saved = {group: _find_savings(table, group) for group in table.groups}
    times = _scale_times(_guess_times(layers, saved), saved)
    curves = {
        group: _fit_curve(_select(times, group), group, savings, table.find_all_channels(group))
        for group, savings in saved.items()
    }
    return tuple(times), curves


def _scale_times(times: list[ChannelLayer], saved: Mapping[str, Points]) -> list[ChannelLayer]:
    """Return times that save as much for each group as the measurements are trusted to say.

    A layer of two groups is scaled for both, in turns. The sum is at most the dense latency.
    """
    indices = {group: [i for i, t in enumerate(times) if group in t.groups] for group in saved}
    # What a group alone saves is linear in the times: the parts of the layers that it fills.
    parts = {
        group: [(i, _save_alone([replace(times[i], work=1.0)], group, 0.0)) for i in found]
        for group, found in indices.items()
    }
    work = [each.work for each in times]
    goals = {
        group: sum(work[i] * part for i, part in parts[group])
        * (1 + _find_change(_select(times, group), group, savings))
        for group, savings in saved.items()
    }
    for _ in range(_ROUNDS):
        for group, goal in goals.items():
            now = sum(work[i] * part for i, part in parts[group])
            for i, _part in parts[group]:
                work[i] *= (goal / now) ** 0.5 if now else 1.0
    used = max(sum(work), 1.0)
    return [replace(each, work=time / used) for each, time in zip(times, work, strict=True)]


def _select(times: Sequence[ChannelLayer], group: str) -> list[ChannelLayer]:
    return [each for each in times if group in each.groups]


def _save_alone(times: Sequence[ChannelLayer], group: str, kept: float) -> float:
    """Return the time that a single group saves, as a fraction of the dense latency.

    Args:
        times: The layers of the group, with fractions of the dense latency as work.
        group: The name of the group; all others are dense.
        kept: The fraction of the work along the group's axes that remains.
    """
    return sum(
        each.work * (1 - each.fraction(lambda name: kept if name == group else 1.0))
        for each in times
    )


def _find_savings(table: LatencyTable, group: str) -> Points:
    """Return pairs of the kept fraction of channels and the saved fraction of the latency."""
    widths = table.ms[group]
    everything = table.find_all_channels(group)
    return [
        (channels / everything, 1 - ms / widths[everything])
        for channels, ms in sorted(widths.items())
        if channels < everything
    ]


def _guess_times(layers: Sequence[ChannelLayer], saved: Mapping[str, Points]) -> list[ChannelLayer]:
    """Return times in proportion to multiply-adds, which fit all savings together best."""
    covered = [each for each in layers if each.groups]
    work = sum(each.work for each in layers) or 1.0
    times = [replace(each, work=each.work / work) for each in covered]
    for group in saved:
        own = _ALONE * sum(each.work for each in _select(times, group))
        times.append(ChannelLayer(name=group, work=max(own, 1e-6), axes=({group: 1.0},)))
    pairs = [
        (_save_alone(_select(times, group), group, kept), saving)
        for group, points in saved.items()
        for kept, saving in points
    ]
    squares = sum(guess * guess for guess, _ in pairs)
    scale = sum(guess * saving for guess, saving in pairs) / squares if squares else 1.0
    return [replace(each, work=each.work * max(scale, 0.05)) for each in times]


def _find_change(times: Sequence[ChannelLayer], group: str, savings: Points) -> float:
    """Return by which fraction the guessed time of a group changes, above -1."""
    guesses = [_save_alone(times, group, kept) for kept, _ in savings]
    squares = sum(guess * guess for guess in guesses)
    if not squares:
        return 0.0
    change = sum(g * s for g, (_, s) in zip(guesses, savings, strict=True)) / squares - 1
    weight = _TRUST**2 / (_TRUST**2 + _NOISE**2 / squares)
    return max(weight * change, -0.95)


def _fit_curve(
    times: Sequence[ChannelLayer], group: str, savings: Points, everything: float
) -> Points:
    """Return the remaining fraction of the work along a group's axes, by channels; it rises."""
    kept = []
    for fraction, saving in savings:
        guess = _save_alone(times, group, fraction)
        deviation = (_BEND * guess) ** 2
        weight = deviation / (deviation + _NOISE**2)
        kept.append(_find_kept(times, group, guess + weight * (saving - guess)))
    widths = [fraction * everything for fraction, _ in savings]
    points = list(zip([*widths, everything], [*make_monotone(kept), 1.0], strict=True))
    return [(0.0, _extend(points)), *points]


def _find_kept(times: Sequence[ChannelLayer], group: str, saving: float) -> float:
    """Return the fraction of the work along a group's axes at which it saves so much."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _save_alone(times, group, middle) > saving else (low, middle)
    return high


def _extend(points: Points) -> float:
    """Return the value at no channels: on the line through the narrowest width and the dense one.

    It is in [0, the narrowest value].
    """
    (left, low), (right, high) = points[0], points[-1]
    if left == right:
        return 0.0
    return min(max(0.0, low - (high - low) * left / (right - left)), low)

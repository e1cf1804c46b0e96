"""Draws the picture of the idea: `python docs/idea.py` writes `docs/images/idea.svg`.

Above is the default ramp; below are the weights of a matrix at four points of it, as magnitude
pruning keeps them. On the right, half of the rows of a matrix are zero, and are then removed. The
picture has a background of its own for light and for dark pages.
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random

from lightning_prune import PolynomialSchedule

PICTURE = Path(__file__).parent / "images" / "idea.svg"
SPARSITY = 0.9
MOMENTS = (0.1, 0.2, 0.3, 0.5)  # fractions of the training
ROWS = COLUMNS = 12
LEVELS = 5  # shades of the weights
CELL = 9  # pixels, with a gap of 1
SIDE = ROWS * CELL
TOP, BOTTOM = 52, 122  # of the chart
LEFT, WIDTH = 48, 560  # of the chart
MATRICES = 196  # upper edge
CHANNELS = 690  # left edge
STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
  .title { font-weight: 600 } .small { font-size: 12px; fill: #59636e }
  .card { fill: #f6f8fa; stroke: #d1d9e0 } .axis { stroke: #b6bfc9 } .link { stroke: #b6bfc9 }
  .curve { fill: none; stroke: #d9480f; stroke-width: 2.5 } .point { fill: #d9480f }
  .kept { fill: #1c7ed6 } .zero { fill: #dfe5eb } .arrow { stroke: #1f2328; fill: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9da7b1 } .card { fill: #161b22; stroke: #3d444d }
    .axis, .link { stroke: #545d68 } .curve { stroke: #ff922b } .point { fill: #ff922b }
    .kept { fill: #4dabf7 } .zero { fill: #2b323b } .arrow { stroke: #e6edf3 }
  }
"""


def keep_largest(weights: list[float], sparsity: float) -> set[int]:
    """Return the places of the weights that magnitude pruning keeps."""
    order = sorted(range(len(weights)), key=lambda place: -abs(weights[place]))
    return set(order[: round(len(weights) * (1 - sparsity))])


def draw_matrix(left: float, top: float, levels: list[int], kept: set[int]) -> Iterator[str]:
    """Yield the cells of a matrix: pruned cells are pale, and large weights are strong."""
    side = CELL - 1
    looks: dict[str, str] = {}
    for place, level in enumerate(levels):
        x, y = left + place % COLUMNS * CELL, top + place // COLUMNS * CELL
        look = f'class="kept" opacity="{level / LEVELS:g}"' if place in kept else 'class="zero"'
        looks[look] = looks.get(look, "") + f"M{x:g} {y:g}h{side}v{side}h-{side}z"
    yield from (f'<path {look} d="{cells}"/>' for look, cells in sorted(looks.items()))


def write(x: float, y: float, text: str, look: str = "", anchor: str = "middle") -> str:
    """Return a line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{look}" text-anchor="{anchor}">{text}</text>'


def draw_ramp(weights: list[float], levels: list[int]) -> Iterator[str]:
    """Yield the curve of the sparsity, and the matrix at each moment."""
    schedule = PolynomialSchedule(begin=MOMENTS[0], end=MOMENTS[-1])

    def place(t: float) -> tuple[float, float]:
        return LEFT + t * WIDTH, BOTTOM - SPARSITY * schedule(t) * (BOTTOM - TOP)

    curve = " ".join("{:.1f},{:.1f}".format(*place(t / 200)) for t in range(201))
    yield write(LEFT, 28, "While it trains: sparsity climbs to the target", "title", "start")
    yield f'<path class="axis" d="M{LEFT} {BOTTOM}H{LEFT + WIDTH}"/>'
    yield f'<polyline class="curve" points="{curve}"/>'
    yield write(LEFT + WIDTH, BOTTOM + 16, "end of training", "small", "end")
    for number, t in enumerate(MOMENTS):
        (x, y), center = place(t), LEFT + WIDTH * (number + 0.5) / len(MOMENTS)
        sparsity = SPARSITY * schedule(t)
        yield f'<path class="link" d="M{x:.1f} {y:.1f}L{center:g} {MATRICES - 24}"/>'
        yield f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        yield write(center, MATRICES - 9, f"sparsity {sparsity:.2f}")
        kept = keep_largest(weights, sparsity)
        yield from draw_matrix(center - SIDE / 2, MATRICES, levels, kept)


def draw_channels(levels: list[int]) -> Iterator[str]:
    """Yield a matrix with rows of zeros, and the matrix without them."""
    rows = [row for row in range(ROWS) if row % 4 in (0, 3)]
    kept = {place for place in range(ROWS * COLUMNS) if place // COLUMNS in rows}
    second = CHANNELS + SIDE + 64
    top = MATRICES - 82
    middle = top + SIDE / 2
    yield f'<path class="axis" d="M{CHANNELS - 42} 24V{MATRICES + SIDE}"/>'
    yield write(CHANNELS, 28, "Or whole channels", "title", "start")
    yield write(CHANNELS + SIDE / 2, top - 9, "ChannelPattern")
    yield write(second + SIDE / 2, top - 9, "shrink")
    yield from draw_matrix(CHANNELS, top, levels, kept)
    yield f'<path class="arrow" d="M{CHANNELS + SIDE + 14} {middle:g}h36m-7 -5l7 5l-7 5"/>'
    left = [levels[place] for place in sorted(kept)]
    yield from draw_matrix(second, middle - len(rows) * CELL / 2, left, set(range(len(left))))
    yield write(CHANNELS, top + SIDE + 26, "The same outputs, and fewer", "small", "start")
    yield write(CHANNELS, top + SIDE + 42, "multiplications in any kernel.", "small", "start")


def draw() -> str:
    """Return the picture."""
    random = Random(0)
    weights = [random.gauss(0, 1) for _ in range(ROWS * COLUMNS)]
    levels = [min(LEVELS, 2 + round(2 * abs(weight))) for weight in weights]
    width, height = CHANNELS + 2 * SIDE + 64 + 40, MATRICES + SIDE + 28
    size = f'width="{width}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size}>',
        f"<style>{STYLE}</style>",
        f'<rect class="card" {size} rx="8"/>',
        *draw_ramp(weights, levels),
        *draw_channels(levels),
        "</svg>",
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PICTURE.write_text(draw())

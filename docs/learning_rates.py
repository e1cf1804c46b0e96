"""Draws the ramp beside a learning rate: `python docs/learning_rates.py`.

The picture has no background, and colors that can be read on light and on dark pages.
"""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from torch.optim.lr_scheduler import OneCycleLR

from lightning_prune import PolynomialSchedule

PICTURE = Path(__file__).parent / "images" / "learning_rates.svg"
STEPS, WARM_UP = 1000, 0.1
GRAY, BLUE, ORANGE = "#8a8a8a", "#3b82f6", "#e8710a"


def list_rates() -> list[float]:
    """Return the learning rate of each step, as a share of the peak: a warm-up and a cosine."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    cycle = OneCycleLR(
        optimizer, 1.0, total_steps=STEPS, pct_start=WARM_UP, cycle_momentum=False, div_factor=1e3
    )
    rates = []
    for _ in range(STEPS - 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cycle.step()
    return [*rates, optimizer.param_groups[0]["lr"]]


def main() -> None:
    """Draw both curves over the training."""
    matplotlib.rcParams.update({"svg.hashsalt": "learning rates", "svg.fonttype": "none"})
    times = np.linspace(0, 1, STEPS)
    schedule = PolynomialSchedule()
    figure, axes = pyplot.subplots(figsize=(7, 2.6))
    axes.plot(times, list_rates(), color=ORANGE, linewidth=2)
    axes.plot(times, [0.9 * schedule(time) for time in times], color=BLUE, linewidth=2)
    axes.text(0.72, 0.42, "learning rate", color=ORANGE)
    axes.text(0.72, 0.93, "sparsity", color=BLUE)
    axes.set_xticks([schedule.begin, schedule.end, 1])
    axes.set_xticklabels(["begin = 0.1", "end = 0.5", "end of training"])
    axes.set_yticks([0, 0.9, 1], ["0", "0.9", "peak"])
    axes.tick_params(colors=GRAY)
    axes.grid(color=GRAY, alpha=0.25)
    axes.spines[:].set_visible(False)
    figure.savefig(PICTURE, transparent=True, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()

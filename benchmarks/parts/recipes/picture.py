"""The picture of `recipes.py`: the result over the sparsity, a panel for each task."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.kit.judging import summarize
from benchmarks.parts.recipes.arms import DENSE
from benchmarks.parts.recipes.results import Result
from benchmarks.parts.recipes.tasks import Task

MARKERS = "osD^vPX*<>dhp8"


def draw_results(results: Sequence[Result], tasks: Sequence[Task], path: Path) -> None:
    """Draw a curve for each case; bits run downwards, so that up is better everywhere."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(tasks), 4.2), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    names = [*dict.fromkeys(result.case.name for result in results if result.runs)]
    for panel, task in zip(panels, tasks, strict=True):
        sparsities: set[float] = set()
        for result in results:
            if result.case.task == task and result.runs:
                draw_curve(panel, result, names.index(result.case.name))
                sparsities.update(set(result.sparsities) - {0.0})
        is_bits = task.judge == "bits"
        panel.set(xscale="log", xlabel="sparsity", title=task.name)
        panel.set_ylabel("bits a byte" if is_bits else "test accuracy, points")
        panel.invert_xaxis()
        if is_bits:
            panel.invert_yaxis()
        ticks = {f"{at:g}": 1 - at for at in sorted(sparsities)}
        panel.set_xticks([*ticks.values()], [*ticks])
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.3)
    legends = [dict(zip(*panel.get_legend_handles_labels()[::-1], strict=True)) for panel in panels]
    handles = {label: handle for legend in legends for label, handle in legend.items()}
    figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=100)


def draw_curve(panel: object, result: Result, index: int) -> None:
    """Draw the curve of a case, or a line across for the dense network."""
    sign = -1 if result.case.task.judge == "bits" else 1
    if result.case.arm.name == DENSE:
        mean = sign * summarize(result.scores_at(0.0)).mean
        panel.axhline(mean, color="black", linestyle=":", label=DENSE)
        return
    summaries = [summarize(result.scores_at(at)) for at in result.sparsities]
    means = [sign * summary.mean for summary in summaries]
    style = {"marker": MARKERS[index % len(MARKERS)], "markersize": 4, "capsize": 3}
    style |= {"color": f"C{index % 10}", "label": result.case.name}
    panel.errorbar(
        [1 - at for at in result.sparsities], means, [each.deviation for each in summaries], **style
    )

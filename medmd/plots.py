"""Bar charts of a dataset's statistics, as the paper shows them: modality, body part, task, source, words per answer."""

from collections.abc import Mapping
from pathlib import Path

CHARTS = (
    ("modality", "Records by modality"),
    ("body_part", "Records by body part"),
    ("task", "Records by task"),
    ("source", "Records by source"),
    ("config", "2D and 3D"),
    ("words per answer", "Words per answer (at least)"),
)
MAX_BARS = 15
LABEL_LETTERS = 28


def draw_plots(folder: Path, statistics: Mapping[str, Mapping[str, int]]) -> list[str]:
    """One PNG with a chart for each statistic; its path relative to the dataset, in a list. No PNG without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return []
    figure = Figure(figsize=(12, 7), layout="constrained")
    for i, (name, title) in enumerate(CHARTS):
        axes = figure.add_subplot(2, 3, i + 1)
        items = list(statistics.get(name, {}).items())
        if name == "words per answer":
            items.sort(key=lambda item: int(item[0]))
        items = items[:MAX_BARS][::-1]
        # By places: bars with labels that are shortened to the same letters would be drawn over each other.
        axes.barh(range(len(items)), [count for _, count in items], color="#33658a")
        axes.set_yticks(range(len(items)), [_shorten(label) for label, _ in items])
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    folder.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(folder / "statistics.png", metadata={"Software": None})
    return [f"{folder.name}/statistics.png"]


def _shorten(label: str) -> str:
    return label if len(label) <= LABEL_LETTERS else label[: LABEL_LETTERS - 1] + "…"

"""Draw docs/images/speed.svg from the measured ratios.

python benchmarks/chart.py
"""

from pathlib import Path

import matplotlib.pyplot as plt

# Times as fast as a plain PyTorch implementation of the published model: benchmarks/README.md, "The model", the machine with
# 112 to 149 GFLOP/s (medians of pairs in one run).
RATIOS = {
    "one X-ray, 512×512": 1.17,
    "one CT, 512×512×64": 2.3,
    "three X-rays and a CT\nin one batch": 10.7,
}
OUT = Path(__file__).parents[1] / "docs" / "images" / "speed.svg"


def main() -> None:
    """Write the chart."""
    figure, axes = plt.subplots(figsize=(7, 1.9))
    names, ratios = list(RATIOS)[::-1], list(RATIOS.values())[::-1]
    bars = axes.barh(names, ratios, color="#0f766e", height=0.6)
    axes.bar_label(bars, labels=[f"{ratio:g} ×" for ratio in ratios], padding=4)
    axes.axvline(1, color="#64748b", linewidth=1, linestyle="--")
    axes.set_xlim(0, max(ratios) * 1.12)
    axes.set_xlabel("times as fast as a plain PyTorch implementation of the published model")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    OUT.parent.mkdir(exist_ok=True)
    # Without a date in it the file changes only with the numbers.
    figure.savefig(OUT, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()

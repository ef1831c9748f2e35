"""Plots the results of run.py relative to their targets. Runs in the environment that has matplotlib.

    python benchmarks/plot.py FILE.svg < claims.json

A claim is {"title", "label", "times": [median, least, most]}. Times is relative to the target: above 1 is met.
"""

import json
import sys
from textwrap import fill
from typing import Any

from matplotlib import pyplot, ticker

MET, MISSED = "#20639b", "#c0392b"
TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 50, 100)


def main() -> None:
    """Writes the file."""
    # Reproducible output; text stays text.
    pyplot.rcParams.update(
        {"svg.hashsalt": "caseload", "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 9}
    )
    claims: list[dict[str, Any]] = json.load(sys.stdin)
    figure, axes = pyplot.subplots(figsize=(9, 0.9 + 0.36 * len(claims)), layout="constrained")
    for row, claim in enumerate(claims):
        median, least, most = claim["times"]
        color = MET if median >= 1 else MISSED
        axes.plot([least, most], [row, row], color=color, alpha=0.35, linewidth=6, solid_capstyle="round")
        axes.plot([median], [row], "o", color=color, markersize=6)
        axes.annotate(
            claim["label"], (1.01, row), xycoords=axes.get_yaxis_transform(), verticalalignment="center", fontsize=8
        )
    axes.axvline(1, color="black", linewidth=1)
    axes.annotate("target", (1, -0.6), annotation_clip=False, horizontalalignment="center", verticalalignment="bottom")
    axes.set_xscale("log")
    least, most = (bound([value for claim in claims for value in claim["times"]]) for bound in (min, max))
    axes.set_xlim(min(0.7, least / 1.1), max(2, most * 1.1))
    axes.xaxis.set_major_locator(ticker.FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.set_xlabel("multiple of the target, above 1 is met; dot: median, bar: range of the rounds")
    axes.set_yticks(range(len(claims)), [fill(claim["title"], 54) for claim in claims])
    axes.set_ylim(len(claims) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(sys.argv[1], metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()

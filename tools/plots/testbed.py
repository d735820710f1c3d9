"""Draws the plots of docs/testbed.md from the folders of the two studies, after `testbed report` on each.

    python testbed.py ROUTERS_FOLDER ABLATIONS_FOLDER OUT_FOLDER

Needs matplotlib.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

SCOPES = ["none", "sequence", "micro-batch", "global"]
ROUTERS = ["softmax", "raw-softmax", "sigmoid", "dropping-softmax"]
# SRP over 16 tokens, arXiv 2505.16056, table 2.
PAPER = {
    "no-balance-loss": 56.42,
    "more-top-k": 55.69,
    "baseline": 43.56,
    "fewer-experts": 41.62,
    "one-shared": 41.38,
    "two-shared": 38.79,
    "strong-balance-loss": 36.42,
    "fewer-top-k": 27.13,
}

MARKERS = "os^vDP*X<>"

Points = dict[str, dict[str, tuple[float, float]]]


def read(folder: Path) -> Points:
    """Mean and deviation of every figure by point."""
    points: Points = defaultdict(dict)
    with (folder / "points.csv").open() as file:
        for row in csv.DictReader(file):
            points[row["point"]][row["figure"]] = (float(row["mean"]), float(row["deviation"]))
    return points


def over_scopes(axes: plt.Axes, points: Points, figure: str, label: str, scale: float = 1.0) -> None:
    for router in ROUTERS:
        values = [points[f"{router}-{scope}"][figure] for scope in SCOPES]
        means, errors = ([scale * value[i] for value in values] for i in range(2))
        axes.errorbar(SCOPES, means, errors, marker="o", capsize=3, label=router)
    for point in ["reference", "hash", "random"]:
        axes.axhline(scale * points[point][figure][0], color="grey", linewidth=0.8, linestyle=":")
        axes.annotate(point, (3.05, scale * points[point][figure][0]), fontsize=7, color="grey")
    axes.set_xlabel("balancing scope")
    axes.set_ylabel(label)


def scatter(axes: plt.Axes, x: dict[str, float], y: dict[str, float], labels: tuple[str, str]) -> None:
    for point in y:
        if point in x:
            axes.plot(x[point], y[point], MARKERS[sorted(y).index(point) % len(MARKERS)], label=point)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])


def save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("routers", type=Path, help="folder of study (a)")
    parser.add_argument("ablations", type=Path, help="folder of study (b)")
    parser.add_argument("out", type=Path, help="folder of the SVG files")
    arguments = parser.parse_args()
    plt.rcParams.update({"svg.hashsalt": "testbed", "svg.fonttype": "none", "font.size": 9})
    arguments.out.mkdir(parents=True, exist_ok=True)

    routers, ablations = read(arguments.routers), read(arguments.ablations)
    figure, panels = plt.subplots(1, 3, figsize=(12, 4))
    for axes, (name, label, scale) in zip(
        panels,
        [
            ("purity", "purity", 1.0),
            ("validation_loss", "validation loss, nats a token", 1.0),
            ("srp_16", "SRP over 16 tokens, %", 100.0),
        ],
    ):
        over_scopes(axes, routers, name, label, scale)
    panels[0].legend(fontsize=8)
    save(figure, arguments.out / "testbed-routers.svg")

    srp = {point: 100 * figures["srp_16"][0] for point, figures in ablations.items()}
    deviation = {point: figures["load_deviation_percent"][0] for point, figures in ablations.items()}
    figure, panels = plt.subplots(1, 2, figsize=(10, 4))
    scatter(panels[0], PAPER, srp, ("SRP over 16 tokens of the paper, %", "SRP over 16 tokens here, %"))
    scatter(panels[1], deviation, srp, ("standard deviation of the load, % points", "SRP over 16 tokens, %"))
    panels[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, arguments.out / "testbed-ablations.svg")


if __name__ == "__main__":
    main()

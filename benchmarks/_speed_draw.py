"""The figure of `speed.py`: time against what grows."""

from pathlib import Path
from typing import Any


def draw_scaling(result: dict[str, Any], path: Path) -> None:
    """One panel per quantity that grows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    figure, panels = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
    about = {
        "points": "points (10,000 images)",
        "images": "images (25 points)",
        "parameters": "parameters (10,000 images, 25 points)",
    }
    styles = {"plain loop": ("#8a8a8a", "s"), "exact": ("#1f5fa8", "o"), "fast": ("#d1495b", "^")}
    for axes, (name, label) in zip(panels, about.items(), strict=True):
        rows = result[name]
        for way, (colour, mark) in styles.items():
            values = [row["seconds"][way] for row in rows]
            axes.loglog([row[name] for row in rows], values, color=colour, marker=mark, label=way)
        values = [row[name] for row in rows]
        axes.set_xticks(values, [EngFormatter(places=0, sep="")(value) for value in values])
        axes.minorticks_off()
        axes.set_xlabel(label)
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds")
    panels[0].legend(frameon=False)
    figure.suptitle("A plane of the MLP: time against what grows", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})

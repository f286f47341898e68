"""Flatness radii of somebody's own networks: every ray, and a row per network."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from flatminima.report import style
from flatminima.report.networks.words import about, table


def rays_figure(radii: xr.Dataset) -> Figure:
    """All rays of every network, and their means."""
    names = [str(name) for name in radii["network"].values]
    figure = Figure(figsize=(6.6, 1.2 + 0.55 * len(names)), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(names):
        one = radii.sel(network=name)
        radius, crossed = one["radius"].values.ravel(), one["outcome"].values.ravel() == 0
        spread = np.linspace(-0.22, 0.22, len(radius))
        colour = style.group_colour(row)
        axes.plot(radius[crossed], row + spread[crossed], "o", ms=3.2, color=colour, alpha=0.55)
        axes.plot(radius[~crossed], row + spread[~crossed], ">", ms=5, mfc="none", mec=colour)
        axes.plot([radius.mean()] * 2, [row - 0.34, row + 0.34], color=colour, lw=2.2)
    axes.set(
        yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6),
        xlim=(0, None), xlabel="distance in weight space",
    )  # fmt: skip
    axes.grid(axis="x")
    return figure


def rays_caption(radii: xr.Dataset) -> str:
    """Under the radii."""
    attrs = radii.attrs
    censored = int((radii["outcome"] != 0).sum())
    more = f" {censored} rays did not cross (open triangles)." if censored else ""
    moved = (
        "all parameters" if attrs["parameters"] == "all" else f"parameters {attrs['parameters']}"
    )
    return (
        f"{about(radii)} Distance along a random direction of {moved} at which the loss has risen"
        f" by {attrs['threshold']:g}; {radii.sizes['direction']} directions, both ways, the same"
        f" for every network. Dots: rays; bars: means.{more} A radius depends on how a network is"
        " parametrised: compare networks of one architecture, trained alike."
    )


def radii_table(radii: xr.Dataset) -> Any:
    """One row per ray."""
    names = ["radius", "outcome", "evaluations", "reentries"]
    return radii[names].to_dataframe().reset_index()


def rays_summary(radii: xr.Dataset) -> str:
    """A row per network."""
    head = ("network", "loss", "mean radius", "r/‖w‖", "least", "not crossed")
    rows = []
    for index, name in enumerate(radii["network"].values):
        one = radii.isel(network=index)
        radius = one["radius"].values
        mean = float(radius.mean())
        rows.append(
            (
                str(name), f"{float(one['loss']):.4g}", f"{mean:.4g}",
                f"{mean / float(one['norm']):.3g}", f"{radius.min():.4g}",
                str(int((one["outcome"] != 0).sum())),
            )
        )  # fmt: skip
    return table(head, rows)

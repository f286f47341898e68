"""Figure of the training curves: loss and accuracy of every network, epoch by epoch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flatminima.report import style
from flatminima.report.contents import Network, StudyContents
from flatminima.report.setting import short_name

QUANTITIES = ("loss", "accuracy")


def training_figure(studies: Sequence[StudyContents]) -> Figure:
    """Loss and accuracy side by side, one row for each study."""
    figure = Figure(figsize=(9.6, 3.5 * len(studies) + 0.4), layout="constrained")
    grid = figure.subplots(len(studies), 2, squeeze=False)
    for study, line in zip(studies, grid, strict=True):
        for axes, quantity in zip(line, QUANTITIES, strict=True):
            draw_curves(axes, study, quantity)
            if len(studies) > 1:
                axes.set_title(f"{short_name(study)}: {axes.get_title('left')}")
    handles = [handle for study in studies for handle in legend_handles(study)]
    unique = list({str(handle.get_label()): handle for handle in handles}.values())
    figure.legend(handles=unique, loc="outside lower center", ncols=len(unique))
    return figure


def training_panel(study: StudyContents, quantity: str) -> Figure:
    """One of the two panels by itself, for the page."""
    figure = Figure(figsize=(4.8, 3.9), layout="constrained")
    draw_curves(figure.subplots(), study, quantity)
    figure.legend(handles=legend_handles(study), loc="outside lower center", ncols=3)
    return figure


def draw_curves(axes: Axes, study: StudyContents, quantity: str) -> None:
    """Draw one quantity over the epochs; a dot marks where a network reached the matched loss."""
    for network in study.networks:
        history, epoch = network.history, network.history["epoch"].values
        colour = style.group_colour(study.colour_index(network.group))
        train = history[f"train_{quantity}"].values
        axes.plot(epoch, train, color=colour, lw=1.3, solid_capstyle="round")
        if f"test_{quantity}" in history:
            test = history[f"test_{quantity}"].values
            axes.plot(epoch, test, color=colour, lw=0.8, ls=(0, (4, 2)), alpha=0.75)
        place = matched_place(network)
        if place is not None:
            axes.plot(
                epoch[place],
                train[place],
                "o",
                ms=5,
                mfc=colour,
                mec=style.PAPER,
                mew=0.9,
                zorder=5,
            )
    match_loss = study.section("training").get("match_loss")
    axes.grid(axis="y")
    axes.set_xlim(left=0)
    axes.set(xlabel="epoch", title=quantity)
    if quantity == "loss":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        if match_loss is not None:
            axes.axhline(match_loss, color=style.MUTED, lw=1.0, ls=(0, (1, 1.5)))
    else:
        axes.set_ylim(top=1.0)


def matched_place(network: Network) -> int | None:
    """The row of the history at which the network reached the matched loss."""
    matched = int(network.history.attrs.get("matched_epoch", -1))
    rows = np.flatnonzero(network.history["epoch"].values == matched)
    return int(rows[0]) if matched >= 0 and rows.size else None


def legend_handles(study: StudyContents) -> list[Line2D]:
    """What the lines and dots mean."""
    handles = [
        Line2D([], [], color=style.group_colour(study.colour_index(group)), lw=1.6, label=group)
        for group in study.groups
    ]
    ink: dict[str, Any] = {"color": style.INK}
    if any("test_loss" in network.history for network in study.networks):
        handles.append(Line2D([], [], **ink, lw=1.2, label="training set"))
        handles.append(Line2D([], [], **ink, lw=0.8, ls=(0, (4, 2)), label="test set"))
    match_loss = study.section("training").get("match_loss")
    if match_loss is not None:
        label = f"matched loss {match_loss:g}"
        handles.append(Line2D([], [], color=style.MUTED, lw=1.0, ls=(0, (1, 1.5)), label=label))
    if any(matched_place(network) is not None for network in study.networks):
        handles.append(Line2D([], [], ls="", marker="o", ms=5, **ink, label="first at or below it"))
    return handles

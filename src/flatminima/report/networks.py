"""The page on somebody's own networks: their surface, the line between them, their radii."""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flatminima.report import style
from flatminima.report.contents import StudyContents, Surface
from flatminima.report.elements import caption, card
from flatminima.report.inline_svg import inline_svg, page_style
from flatminima.report.page import fill_page, surface_row
from flatminima.report.provenance import provenance_section
from flatminima.report.surfaces import contour_panel, contours_figure, surfaces_figure
from flatminima.report.write import save_figure
from flatminima.store import Store

KINDS = ("surface", "line", "radius")
"""What may have been measured, in the order of the page."""

_TITLES = {
    "surface": "The loss around them",
    "line": "The loss between two of them",
    "radius": "Flatness radii",
}
# A surface is drawn up to its largest loss, or up to this share of its points where the largest is
# more than so many times as high: one corner would hide everything else.
_SHARE, _TIMES = 0.75, 3.0
_MAP = (
    "The same plane as a map, with one length scale along both axes. Lines: equal loss; dashed:"
    " from network to network, with distances. Colours follow the square root of the loss."
)
_QUESTIONS = {"ok": "fine", "note": "to be known", "fail": "wrong"}


def write_networks_report(store: Store, name: str, out: Path) -> Path:
    """Write the page, figures and tables of what was measured of somebody's networks.

    Writes `report.html` (self-contained) and, for whatever was measured, `figure-surface`,
    `figure-contours`, `figure-line` and `figure-radii` as `.png` and `.svg`, and `line.csv` and
    `radii.csv`.

    Args:
        store: Where the results are; nothing is computed from them.
        name: Under which they were measured.
        out: The folder to write into; it is made if it does not exist.

    Returns:
        The path of `report.html`.

    Raises:
        StoreError: If nothing was measured under that name, or a result is damaged.
    """
    manifest = store.manifest(name)
    jobs = {str(job["kind"]): str(job["digest"]) for job in manifest["jobs"]}
    found = {
        kind: store.open_payload(kind, jobs[kind], f"{kind}.zarr") for kind in KINDS if kind in jobs
    }
    runs = tuple(run for kind in found for run in _runs(store, kind, jobs[kind]))
    out.mkdir(parents=True, exist_ok=True)
    study = _drawn(name, manifest["settings"], found.get("surface"), runs)
    with style.figure_style():
        for label, figure, text in _figures(study, found):
            save_figure(figure, text, out / f"figure-{label}")
    if "line" in found:
        _line_table(found["line"]).to_csv(out / "line.csv", index=False)
    if "radius" in found:
        _radii_table(found["radius"]).to_csv(out / "radii.csv", index=False)
    page = out / "report.html"
    page.write_text(_page(study, found, manifest), encoding="utf-8")
    return page


def _runs(store: Store, kind: str, digest: str) -> Iterator[Mapping[str, Any]]:
    """The record of a result, and those of its steps that are still there."""
    result = store.record(kind, digest)
    steps = set(result["dependencies"])
    yield result
    step = {"surface": "tile"}.get(kind, kind)
    yield from (store.record(step, each) for each in steps if store.done(step, each))


def _drawn(
    name: str,
    settings: Mapping[str, Any],
    surface: xr.Dataset | None,
    runs: tuple[Mapping[str, Any], ...],
) -> StudyContents:
    """What the drawing of studies' surfaces reads, for one surface without a study."""
    height = 1.0 if surface is None else drawn_height(surface["loss"].values)
    return StudyContents(
        name=name,
        settings={"title": settings.get("title") or name, "report": {"clip": height}},
        networks=(),
        surfaces=() if surface is None else (Surface("", "end", "train", surface),),
        summary=None,
        radii=None,
        runs=runs,
        missing=0,
    )


def drawn_height(losses: np.ndarray) -> float:
    """Up to which loss a surface is drawn, rounded to two digits."""
    finite = losses[np.isfinite(losses)]
    if not len(finite) or finite.max() <= 0.0:
        return 1.0
    most, usual = float(finite.max()), float(np.quantile(finite, _SHARE))
    height = usual if usual > 0.0 and most > _TIMES * usual else most
    digits = 1 - math.floor(math.log10(height))
    return math.ceil(height * 10.0**digits) / 10.0**digits


def _figures(
    study: StudyContents, found: Mapping[str, xr.Dataset]
) -> Iterator[tuple[str, Figure, str]]:
    """Every figure with its caption."""
    if "surface" in found:
        row = [(study, list(study.surfaces))]
        text = surface_caption(found["surface"], study.clip)
        yield "surface", surfaces_figure(row, _title), text
        yield "contours", contours_figure(row, _title), text
    if "line" in found:
        yield "line", line_figure(found["line"]), line_caption(found["line"])
    if "radius" in found:
        yield "radii", rays_figure(found["radius"]), rays_caption(found["radius"])


def _title(_study: StudyContents, surface: Surface) -> str:
    assert surface.data is not None
    names = _names(surface.data)
    if len(names) == 1:
        return f"around {names[0]}"
    return ", ".join(f"{i + 1} {name}" for i, name in enumerate(names))


def _names(data: xr.Dataset) -> list[str]:
    return [str(name) for name in np.atleast_1d(data.attrs.get("networks", []))]


def _about(data: xr.Dataset) -> str:
    """Data, loss and policy of anything measured."""
    attrs = data.attrs
    loss = str(attrs["loss_name"]).replace("_", " ")
    policy = str(attrs["batchnorm"])
    norm = "no BatchNorm" if policy == "none" else f"BatchNorm policy {policy}"
    return (
        f"Mean {loss} over {int(attrs['samples']):,} samples of {attrs['dataset']},"
        f" {attrs['precision']} arithmetic, {norm}."
    )


def surface_caption(surface: xr.Dataset, height: float) -> str:
    """Under a surface."""
    losses = ", ".join(f"{loss:.4g}" for loss in surface["anchor_loss"].values)
    rows, columns = surface["loss"].shape
    holes = int((~np.isfinite(surface["loss"])).sum())
    parts = [
        f"{_about(surface)} {columns} by {rows} points; axes u and v are distances in weight space;"
        f" losses at the networks: {losses}.",
        f"Drawn up to {height:g}; the largest loss is {float(surface['loss'].max()):.4g}.",
    ]
    if holes:
        parts.append(f"At {holes} points the loss is not finite: they are left out.")
    if "clip" in surface.attrs:
        stopped = int((surface["outcome"] == 2).sum())
        parts.append(f"{stopped} points were stopped above {surface.attrs['clip']:g}.")
    return " ".join(parts)


def line_figure(line: xr.Dataset) -> Figure:
    """The loss along a line with its chord, and accuracy below where it is known."""
    panels = 2 if "accuracy" in line else 1
    figure = Figure(figsize=(6.2, 2.9 * panels), layout="constrained")
    axes = np.atleast_1d(figure.subplots(panels, 1, sharex=True))
    position = line["position"].values
    top = axes[0]
    top.plot(position, line["loss"], "o-", ms=3.5, lw=1.4, color=style.group_colour(0))
    if "standard_error" in line:
        low, high = (line["loss"] + k * 1.96 * line["standard_error"] for k in (-1, 1))
        top.fill_between(position, low, high, color=style.group_colour(0), alpha=0.18, lw=0)
    top.plot(position, line["chord"], ls=(0, (4, 3)), lw=1.0, color=style.MUTED)
    barrier, at = float(line.attrs["barrier"]), float(line.attrs["barrier_position"])
    if math.isfinite(barrier) and barrier > 0:
        foot = float(np.interp(at, position, line["chord"].values))
        top.annotate(
            "", (at, foot + barrier), (at, foot),
            arrowprops={"arrowstyle": "<->", "color": style.MARKER, "lw": 1.2},
        )  # fmt: skip
        top.text(
            at, foot + barrier / 2, f"  barrier {barrier:.3g}", color=style.MARKER, va="center"
        )
    top.set(ylabel="loss", ylim=(0 if float(line["loss"].min()) >= 0 else None, None))
    if panels == 2:
        axes[1].plot(position, line["accuracy"], "o-", ms=3.5, lw=1.4, color=style.group_colour(2))
        axes[1].set(ylabel="accuracy")
    names = _names(line)
    axes[-1].set(xlabel=f"position: 0 is {names[0]}, 1 is {names[1]}")
    for each in axes:
        each.grid(axis="y")
        each.yaxis.set_major_locator(MaxNLocator(5))
    return figure


def line_caption(line: xr.Dataset) -> str:
    """Under a line."""
    barrier = float(line.attrs["barrier"])
    if math.isfinite(barrier):
        at = float(line.attrs["barrier_position"])
        rise = (
            f"The barrier, the largest rise above the chord (dashed), is {barrier:.4g} at {at:.3g}."
        )
    else:
        rise = "A loss on the way is not finite: the barrier is infinite."
    band = " Band: 95 % sampling error of the mean." if "standard_error" in line else ""
    return (
        f"{_about(line)} {line.sizes['position']} points on the straight line, which is"
        f" {float(line.attrs['length']):.4g} long. {rise}{band}"
    )


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
        f"{_about(radii)} Distance along a random direction of {moved} at which the loss has risen"
        f" by {attrs['threshold']:g}; {radii.sizes['direction']} directions, both ways, the same"
        f" for every network. Dots: rays; bars: means.{more} A radius depends on how a network is"
        " parametrised: compare networks of one architecture, trained alike."
    )


def _line_table(line: xr.Dataset) -> Any:
    return (
        line[[name for name in line.data_vars if line[name].dims == ("position",)]]
        .to_dataframe()
        .reset_index()
    )


def _radii_table(radii: xr.Dataset) -> Any:
    """One row per ray."""
    names = ["radius", "outcome", "evaluations", "reentries"]
    return radii[names].to_dataframe().reset_index()


def _page(
    study: StudyContents, found: Mapping[str, xr.Dataset], manifest: Mapping[str, Any]
) -> str:
    views: list[dict[str, Any]] = []
    sections = {kind: _section(kind, study, data, views) for kind, data in found.items()}
    titles = {kind: _TITLES[kind] for kind in found}
    if manifest.get("findings"):
        sections["check"] = _findings(manifest["findings"])
        titles["check"] = "Checks"
    sections["made"] = provenance_section(study)
    titles["made"] = "How it was made"
    body = "".join(
        f'<section id="{key}"><h2>{titles[key]}</h2>{content}</section>'
        for key, content in sections.items()
    )
    links = "".join(f'<a href="#{key}">{titles[key]}</a>' for key in sections)
    title = study.title
    article = f'<article class="study"><h1>{html.escape(title)}</h1>{body}</article>'
    return fill_page(title, links, article, {"rows": views, "colours": style.plotly_colours()})


def _section(kind: str, study: StudyContents, data: xr.Dataset, views: list[dict[str, Any]]) -> str:
    """One result as it stands on the page."""
    if kind == "surface":
        text = surface_caption(data, study.clip)
        row = list(study.surfaces)
        turn = f"{text} Drag to turn the surface; point at it to read it."
        relief = surface_row(study, row, views, _title, turn)
        with style.figure_style(**page_style("contours")):
            chart = inline_svg(contour_panel(study, row, row[0], _title), "Contour map")
        return f'{relief}<div class="pair">{card(chart)}</div>{caption(_MAP)}'
    if kind == "line":
        with style.figure_style(**page_style("line")):
            chart = inline_svg(line_figure(data), "Loss along the line")
        return f'<div class="pair">{card(chart)}</div>{caption(line_caption(data))}'
    with style.figure_style(**page_style("radii")):
        chart = inline_svg(rays_figure(data), "Radii of every ray")
    drawn = f'<div class="pair">{card(chart)}</div>{caption(rays_caption(data))}'
    return f"{drawn}{_rays_summary(data)}"


def _rays_summary(radii: xr.Dataset) -> str:
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
    return _table(head, rows)


def _findings(findings: list[Mapping[str, str]]) -> str:
    """The checks as a table."""
    rows = [(_QUESTIONS[f["verdict"]], f["question"], f["answer"]) for f in findings]
    return _table(("verdict", "question", "what was found"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Table"><table class="plain">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )

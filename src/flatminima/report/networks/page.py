"""The page on somebody's own networks: their surface, the line between them, their radii."""

import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from flatminima.report import style
from flatminima.report.contents import StudyContents, Surface
from flatminima.report.elements import caption, card
from flatminima.report.inline_svg import inline_svg, page_style
from flatminima.report.networks.line import line_caption, line_figure, line_table
from flatminima.report.networks.maps import drawn_height, maps_figures, maps_section, values_table
from flatminima.report.networks.radii import radii_table, rays_caption, rays_figure, rays_summary
from flatminima.report.networks.words import about, metrics_of, names_of, subsets_of, table
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
_MAP = (
    "The same plane as a map, with one length scale along both axes. Lines: equal loss; dashed:"
    " from network to network, with distances. Colours follow the square root of the loss."
)
_BESIDE = frozenset({"groups", "metrics"})
_QUESTIONS = {"ok": "fine", "note": "to be known", "fail": "wrong"}


def write_networks_report(store: Store, name: str, out: Path) -> Path:
    """Write the page, figures and tables of what was measured of somebody's networks.

    Writes `report.html` (self-contained) and, for whatever was measured, `figure-surface`,
    `figure-contours`, `figure-groups`, `figure-metrics`, `figure-line` and `figure-radii` as `.png`
    and `.svg`, and `line.csv` and `radii.csv`.

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
    drawn = set()
    with style.figure_style():
        for label, figure, text in _figures(study, found):
            drawn.add(label)
            save_figure(figure, text, out / f"figure-{label}")
    for label in _BESIDE - drawn:  # measured before, and not again
        for suffix in (".png", ".svg"):
            (out / f"figure-{label}{suffix}").unlink(missing_ok=True)
    if "line" in found:
        line_table(found["line"]).to_csv(out / "line.csv", index=False)
    if "radius" in found:
        radii_table(found["radius"]).to_csv(out / "radii.csv", index=False)
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


def _figures(
    study: StudyContents, found: Mapping[str, xr.Dataset]
) -> Iterator[tuple[str, Figure, str]]:
    """Every figure with its caption."""
    if "surface" in found:
        row = [(study, list(study.surfaces))]
        text = surface_caption(found["surface"], study.clip)
        yield "surface", surfaces_figure(row, _title), text
        yield "contours", contours_figure(row, _title), text
        yield from maps_figures(study, found["surface"])
    if "line" in found:
        yield "line", line_figure(found["line"]), line_caption(found["line"])
    if "radius" in found:
        yield "radii", rays_figure(found["radius"]), rays_caption(found["radius"])


def _title(_study: StudyContents, surface: Surface) -> str:
    assert surface.data is not None
    names = names_of(surface.data)
    if len(names) == 1:
        return f"around {names[0]}"
    return ", ".join(f"{i + 1} {name}" for i, name in enumerate(names))


def surface_caption(surface: xr.Dataset, height: float) -> str:
    """Under a surface."""
    losses = ", ".join(f"{loss:.4g}" for loss in surface["anchor_loss"].values)
    rows, columns = surface["loss"].shape
    holes = int((~np.isfinite(surface["loss"])).sum())
    parts = [
        f"{about(surface)} {columns} by {rows} points; axes u and v are distances in weight space;"
        f" losses at the networks: {losses}.",
        f"Drawn up to {height:g}; the largest loss is {float(surface['loss'].max()):.4g}.",
    ]
    if holes:
        parts.append(f"At {holes} points the loss is not finite: they are left out.")
    if "clip" in surface.attrs:
        stopped = int((surface["outcome"] == 2).sum())
        parts.append(f"{stopped} points were stopped above {surface.attrs['clip']:g}.")
    return " ".join(parts)


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
        drawn = f'{relief}<div class="pair">{card(chart)}</div>{caption(_MAP)}'
        return drawn + maps_section(study, data)
    if kind == "line":
        with style.figure_style(**page_style("line")):
            chart = inline_svg(line_figure(data), "Loss along the line")
        if subsets_of(data):  # their legend needs room
            chart = chart.replace("<svg ", '<svg style="max-width:680px" ', 1)
        values = values_table(data) if subsets_of(data) or metrics_of(data) else ""
        return f'<div class="pair">{card(chart)}</div>{caption(line_caption(data))}{values}'
    with style.figure_style(**page_style("radii")):
        chart = inline_svg(rays_figure(data), "Radii of every ray")
    drawn = f'<div class="pair">{card(chart)}</div>{caption(rays_caption(data))}'
    return f"{drawn}{rays_summary(data)}"


def _findings(findings: list[Mapping[str, str]]) -> str:
    """The checks as a table."""
    rows = [(_QUESTIONS[f["verdict"]], f["question"], f["answer"]) for f in findings]
    return table(("verdict", "question", "what was found"), rows)

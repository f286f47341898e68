"""The page: one self-contained file that shows everything the store holds of some studies."""

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from string import Template
from typing import Any

import numpy as np

from flatminima.report import captions, page_overview, style
from flatminima.report.contents import StudyContents, Surface
from flatminima.report.elements import caption, card, missing, sentence, swatch
from flatminima.report.inline_svg import inline_svg, page_style
from flatminima.report.page_planes import has_planes, planes_section
from flatminima.report.page_tables import no_radii, table_section
from flatminima.report.provenance import facts, provenance_section, settings_section
from flatminima.report.radii import measured_columns, measured_parameters, radii_panel
from flatminima.report.setting import setting_note
from flatminima.report.surfaces import CAMERA, Title, contour_panel, surface_title
from flatminima.report.tables import COLUMN_TITLES, PARAMETER_TITLES
from flatminima.report.training_curves import QUANTITIES, training_panel

escape = html.escape

_SECTIONS = {
    "answer": "Answer",
    "surfaces": "Surfaces",
    "contours": "Maps",
    "policies": "BatchNorm",
    "table": "Table",
    "radii": "Radii",
    "training": "Training",
    "made": "How it was made",
}
_DISTANCE = 2.0
"""Of the camera, in sizes of the scene."""


def build_page(studies: Sequence[StudyContents]) -> str:
    """The whole page as text; nothing in it points outside."""
    views: list[dict[str, Any]] = []
    body = "\n".join(
        _study(study, index, views, alone=len(studies) == 1) for index, study in enumerate(studies)
    )
    if len(studies) > 1:
        body = f"{page_overview.overview(studies)}\n{body}"
    data = {"rows": views, "colours": style.plotly_colours()}
    return fill_page(" · ".join(study.title for study in studies), _navigation(studies), body, data)


def fill_page(title: str, navigation: str, body: str, data: Mapping[str, Any]) -> str:
    """The page around its content; `data` is what its script draws."""
    return Template(_part("page.html")).substitute(
        title=escape(title),
        style=_part("page.css"),
        navigation=navigation,
        body=body,
        plotly=_plotly() if data["rows"] else "",
        data=_embedded_json(data),
        script=_part("page.js"),
    )


def _navigation(studies: Sequence[StudyContents]) -> str:
    """Links to the sections of the only study, or to the overview and every study."""
    if len(studies) == 1:
        return _section_links(studies[0])
    links = dict(page_overview.SECTIONS)
    links |= {escape(study.name): escape(study.name) for study in studies}
    return "".join(f'<a href="#{key}">{title}</a>' for key, title in links.items())


def _section_links(study: StudyContents) -> str:
    name = escape(study.name)
    return "".join(
        f'<a href="#{name}-{key}">{title}</a>'
        for key, title in _SECTIONS.items()
        if key != "policies" or has_planes(study)
    )


def _part(name: str) -> str:
    return resources.files("flatminima.report").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    """The drawing library, inlined. Its text holds no closing script tag; a test says so."""
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"


def _embedded_json(value: object) -> str:
    """JSON that no text inside it can end before its time."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _study(study: StudyContents, index: int, views: list[dict[str, Any]], *, alone: bool) -> str:
    """All sections of one study."""
    chips = "".join(f"<li{strong}>{escape(text)}</li>" for text, strong in _chips(study))
    sections = {
        "answer": _answer(study),
        "surfaces": _surfaces(study, views),
        "contours": _contours(study, index),
        "policies": planes_section(study, index),
        "table": _by_split(study, table_section),
        "radii": _by_split(study, partial(_radii, index=index)),
        "training": _training(study, index),
        "made": provenance_section(study) + settings_section(study),
    }
    titles = {
        "answer": "Answer",
        "surfaces": "The loss between the minima",
        "contours": "The same planes as maps",
        "policies": "The same planes under other BatchNorm policies",
        "table": "Flatness radii, table",
        "radii": "Flatness radii, every ray",
        "training": "Training",
        "made": "How it was made",
    }
    name = escape(study.name)
    parts = [
        f'<section id="{name}-{key}"{" class=answer" if key == "answer" else ""}>'
        f"<h2>{titles[key]}</h2>{content}</section>"
        for key, content in sections.items()
        if content
    ]
    head = f'<h1>{escape(study.title)}</h1><ul class="facts">{chips}</ul>'
    if note := setting_note(study):
        head += f'<p class="note">{escape(note)}</p>'
    if not alone:
        head += f'<nav class="within" aria-label="Sections of {name}">{_section_links(study)}</nav>'
    return f'<article class="study" id="{name}">{head}{"".join(parts)}</article>'


def _by_split(study: StudyContents, draw: Callable[[StudyContents], str]) -> str:
    """A section by the radii of each split, the first without a title of its own."""
    return draw(study) + "".join(
        f"<h3>The same on the {escape(other.split)} split</h3>{draw(other)}"
        for other in study.further
    )


def _chips(study: StudyContents) -> list[tuple[str, str]]:
    texts = [(study.version, ' class="strong"'), (captions.data_name(study), "")]
    return texts + [(fact, "") for fact in facts(study)]


def _answer(study: StudyContents) -> str:
    """The sentences of the summary, the matched comparison first."""
    if not study.sentences:
        return sentence("No answer yet: the radii of this study have not been summarised.")
    lead, *rest = study.sentences
    return f'<p class="lead">{escape(lead)}</p>' + "".join(f"<p>{escape(s)}</p>" for s in rest)


def _surfaces(study: StudyContents, views: list[dict[str, Any]]) -> str:
    """Every row of surfaces with its toggles."""
    if not study.surfaces:
        return sentence(_no_surface(study))
    return "".join(_surface_row(study, row, views) for row in study.surface_rows())


def _surface_row(study: StudyContents, row: list[Surface], views: list[dict[str, Any]]) -> str:
    """Reliefs of a study side by side, with their caption."""
    text = (
        f"{captions.surfaces_caption(study, row)} Drag to turn both surfaces; point at one to "
        "read it."
    )
    return surface_row(study, row, views, surface_title, text)


def surface_row(
    study: StudyContents,
    row: list[Surface],
    views: list[dict[str, Any]],
    title: Title,
    text: str,
) -> str:
    """Reliefs side by side over a caption, what is drawn of them in `views`."""
    made = [surface for surface in row if surface.data is not None]
    if not made:
        return f'<div class="pair">{"".join(missing(surface) for surface in row)}</div>'
    number = len(views)
    views.append(_view(study, made))
    places = {id(surface): i for i, surface in enumerate(made)}
    cards = [
        missing(surface)
        if surface.data is None
        else f'<figure class="card" style="margin:0"><h3>{swatch(study, surface.group)}'
        f"{escape(title(study, surface))}</h3>"
        f'<div class="scene" id="scene-{number}-{places[id(surface)]}" role="img" '
        f'aria-label="Loss surface, {escape(title(study, surface))}"></div></figure>'
        for surface in row
    ]
    tools = (
        '<div class="tools" role="group" aria-label="How the surfaces are drawn">'
        '<button type="button" class="button" data-toggle="clip" aria-pressed="true">'
        f"Clip at {study.clip:g}</button>"
        '<button type="button" class="button" data-toggle="log" aria-pressed="false">'
        "Log scale</button>"
        '<button type="button" class="button" data-reset>Reset view</button></div>'
    )
    scale = (
        '<div class="scale"><div class="ramp"></div><div class="ticks"></div>'
        '<div class="name"></div></div>'
    )
    return (
        f'<div id="view-{number}">{tools}<div class="pair">{"".join(cards)}</div>{scale}</div>'
        f"{caption(text)}"
    )


def _view(study: StudyContents, made: list[Surface]) -> dict[str, Any]:
    """A row of surfaces as the page's script reads it."""
    elevation, azimuth = (math.radians(CAMERA[key]) for key in ("elev", "azim"))
    eye = {
        "x": _DISTANCE * math.cos(elevation) * math.cos(azimuth),
        "y": _DISTANCE * math.cos(elevation) * math.sin(azimuth),
        "z": _DISTANCE * math.sin(elevation),
    }
    camera = {"eye": eye, "center": {"x": 0, "y": 0, "z": -0.1}, "up": {"x": 0, "y": 0, "z": 1}}
    return {"clip": study.clip, "camera": camera, "surfaces": [_numbers(s) for s in made]}


def _numbers(surface: Surface) -> dict[str, Any]:
    """The stored numbers of a surface, six digits of each; a loss that is not finite is null."""
    data = surface.data
    assert data is not None
    anchors = [
        {name: _six(data[f"anchor_{name}"].values[i]) for name in ("u", "v", "loss")}
        | {
            "accuracy": _six(data["anchor_accuracy"].values[i])
            if "anchor_accuracy" in data
            else None
        }
        for i in range(data.sizes["anchor"])
    ]
    numbers = {name: _six(data[name].values) for name in ("u", "v", "x", "y", "loss")}
    accuracy = _six(data["accuracy"].values) if "accuracy" in data else None
    return {**numbers, "accuracy": accuracy, "anchors": anchors}


def _six(values: Any) -> Any:
    """Six significant digits, None for what is not finite; nested lists for arrays."""
    if np.ndim(values):
        return [_six(value) for value in values]
    value = float(values)
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _contours(study: StudyContents, index: int) -> str:
    """The maps, drawn once and recoloured by the page's theme."""
    if not study.surfaces:
        return sentence(_no_surface(study))
    parts = []
    for r, row in enumerate(study.surface_rows()):
        cards = []
        for s, surface in enumerate(row):
            if surface.data is None:
                cards.append(missing(surface))
                continue
            with style.figure_style(**page_style(f"contours-{index}-{r}-{s}")):
                figure = contour_panel(study, row, surface)
                label = f"Contour map, {surface_title(study, surface)}"
                cards.append(card(inline_svg(figure, label)))
        parts.append(
            f'<div class="pair">{"".join(cards)}</div>'
            f"{caption(captions.contours_caption(study, row))}"
        )
    return "".join(parts)


def _training(study: StudyContents, index: int) -> str:
    if not study.networks:
        return sentence("No network of this study has finished its training yet.")
    cards = []
    for quantity in QUANTITIES:
        with style.figure_style(**page_style(f"training-{index}-{quantity}")):
            figure = training_panel(study, quantity)
            cards.append(card(inline_svg(figure, f"Training curves, {quantity}")))
    notes = "".join(f"<p>{escape(note)}</p>" for note in captions.interpolation_notes(study))
    return (
        f'{notes}<div class="pair">{"".join(cards)}</div>'
        f"{caption(captions.training_caption(study))}"
    )


def _radii(study: StudyContents, index: int) -> str:
    if not study.has_radii:
        return sentence(no_radii(study))
    cards = []
    for parameters in measured_parameters(study):
        for column in measured_columns(study):
            with style.figure_style(
                **page_style(f"radii-{index}-{study.split}-{column}-{parameters}")
            ):
                figure = radii_panel(study, column, parameters)
                label = f"Radii, {PARAMETER_TITLES[parameters]}, {COLUMN_TITLES[column]}"
                cards.append(card(inline_svg(figure, label)))
    return f'<div class="panels">{"".join(cards)}</div>{caption(captions.radii_caption(study))}'


def _no_surface(study: StudyContents) -> str:
    asked: Mapping[str, Any] = study.section("surface")
    return (
        "The surfaces of this study have not been computed yet."
        if asked
        else "This study asks for no surface."
    )

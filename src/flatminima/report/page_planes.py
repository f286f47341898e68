"""The section of the page on planes under several BatchNorm policies, and on their minima."""

import html
import math
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from flatminima.report import captions, style
from flatminima.report.contents import Planes, StudyContents, Surface
from flatminima.report.elements import caption, card, missing, swatch
from flatminima.report.inline_svg import inline_svg, page_style
from flatminima.report.planes import MEANINGS, NEAR, PlaneFacts, constant_loss, plane_facts
from flatminima.report.setting import CLASSES
from flatminima.report.surfaces import contour_panel, policy_title, relief_panel, surface_title
from flatminima.report.words import number, percent

escape = html.escape


def has_planes(study: StudyContents) -> bool:
    """Whether there is anything to say of BatchNorm policies."""
    return bool(study.planes()) or any(map(_has_stored, study.surfaces))


def planes_section(study: StudyContents, index: int) -> str:
    """Every plane under its policies, and the minima with and without their own statistics."""
    parts = []
    for place, planes in enumerate(study.planes()):
        key = f"planes-{index}-{place}"
        title = escape(surface_title(study, planes[0]))
        parts.append(
            f"<h3>{swatch(study, planes[0].group)}{title}</h3>"
            f"{relief_cards(study, planes, key)}{_map_cards(study, planes, key)}"
            f"{caption(captions.planes_caption(study, planes))}{_facts_table(study, planes)}"
        )
    return "".join(parts) + _minima_table(study)


def relief_cards(study: StudyContents, surfaces: Sequence[Surface], key: str) -> str:
    """Reliefs of one plane side by side, each with the name of its policy."""
    return _cards(
        study,
        surfaces,
        f"{key}-relief",
        lambda surface: relief_panel(study, surface),
        lambda surface: f"<h4>{escape(policy_title(study, surface))}</h4>",
    )


def _map_cards(study: StudyContents, planes: Planes, key: str) -> str:
    """The same planes as maps."""
    return _cards(
        study,
        planes,
        f"{key}-map",
        lambda surface: contour_panel(study, planes, surface, policy_title),
        lambda surface: "",
    )


def _cards(
    study: StudyContents,
    surfaces: Sequence[Surface],
    key: str,
    draw: Callable[[Surface], Figure],
    head: Callable[[Surface], str],
) -> str:
    cards = []
    for place, surface in enumerate(surfaces):
        if surface.data is None:
            cards.append(missing(surface))
            continue
        with style.figure_style(**page_style(f"{key}-{place}")):
            label = f"{surface_title(study, surface)}, BatchNorm policy {surface.policy}"
            cards.append(card(head(surface) + inline_svg(draw(surface), label)))
    return f'<div class="panels">{"".join(cards)}</div>'


def _facts_table(study: StudyContents, planes: Planes) -> str:
    """What was counted on each plane."""
    classes = CLASSES.get(str(study.section("data").get("dataset")))
    if classes is None:
        return ""
    facts = plane_facts(planes, classes)
    chance = any(plane.chance is not None for plane in facts)
    head = [
        "policy",
        "points",
        "holes",
        f"within {percent(NEAR)} of {constant_loss(classes)}",
        *(["of these, guessing"] if chance else []),
        f"below {number(math.log(classes) / 2)}",
        "loss at the centroid",
        "hole or constant only here",
    ]
    rows = [_facts_row(plane, chance) for plane in facts]
    note = (
        "Shares of grid points. Guessing: an accuracy of at most one and a half times that of "
        "chance. Loss at the centroid: between grid points, linearly. The last column counts "
        "points where this plane is a hole or a constant output and the first plane neither."
    )
    return table(head, rows, "Planes by BatchNorm policy") + caption(note)


def _facts_row(plane: PlaneFacts, chance: bool) -> list[str]:
    def share(count: int | None) -> str:
        return "-" if count is None else f"{percent(count / plane.points)} ({count})"

    return [
        plane.policy,
        f"{plane.shape[1]} by {plane.shape[0]}",
        share(plane.holes),
        share(plane.constant),
        *([share(plane.chance)] if chance else []),
        share(plane.low),
        number(plane.centre) if math.isfinite(plane.centre) else "hole",
        share(plane.broken),
    ]


def _minima_table(study: StudyContents) -> str:
    """The minima under every policy beside the statistics that their training left."""
    made = [surface for surface in study.surfaces if _has_stored(surface)]
    if not made:
        return ""
    count = max(len(_losses(surface)) for surface in made)
    rows = "".join(
        f'<tr><th scope="row">{escape(surface_title(study, surface))}<br>'
        f"{escape(surface.policy)}</th>"
        + "".join(f"<td>{_minimum(*losses)}</td>" for losses in _losses(surface))
        + "</tr>"
        for surface in made
    )
    titles = "".join(f'<th scope="col">minimum {i + 1}</th>' for i in range(count))
    policies = dict.fromkeys(surface.policy for surface in made)
    known = [f"{policy}: {MEANINGS[policy]}" for policy in policies if policy in MEANINGS]
    note = (
        "Train loss of every minimum under the policy of the plane, with the running statistics "
        f"that its own training left, and the difference. In words, {'; '.join(known)}."
    )
    return (
        "<h3>Losses of the minima</h3>"
        '<div class="scroll" role="region" tabindex="0" aria-label="Losses of the minima">'
        f'<table class="main-table"><thead><tr><td></td>{titles}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{caption(note)}"
    )


def _losses(surface: Surface) -> list[tuple[float, float]]:
    """The loss of every minimum on the plane, and with its own statistics."""
    assert surface.data is not None
    stored = surface.data["anchor_stored_loss"].values
    return list(zip(surface.data["anchor_loss"].values, stored, strict=True))


def _minimum(loss: float, own: float) -> str:
    texts = (f"own statistics {_loss(own)}", f"difference {_less(loss, own)}")
    return f"<strong>{_loss(loss)}</strong>" + "".join(f"<span>{text}</span>" for text in texts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    """A plain table with wide titles broken, which scrolls by itself."""
    titles = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f'<table class="plain wrapped"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _has_stored(surface: Surface) -> bool:
    return surface.data is not None and "anchor_stored_loss" in surface.data


def _loss(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def _less(loss: float, own: float) -> str:
    difference = loss - own
    if not math.isfinite(difference):
        return "-"
    return f"{difference:+.2g}".replace("-", "\N{MINUS SIGN}", 1)

"""The page on somebody's own networks: their surface, the line between them, their radii."""

from flatminima.report.networks.line import line_caption, line_figure
from flatminima.report.networks.maps import drawn_height
from flatminima.report.networks.page import KINDS, write_networks_report
from flatminima.report.networks.radii import rays_caption, rays_figure

__all__ = [
    "KINDS",
    "drawn_height",
    "line_caption",
    "line_figure",
    "rays_caption",
    "rays_figure",
    "write_networks_report",
]

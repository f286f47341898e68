"""How flat a minimum is."""

from flatminima.flatness.radius import flatness_radius

__all__ = ["flatness_radius"]

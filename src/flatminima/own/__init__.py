"""A user's own networks: checkpoints, a factory and data, measured into a store with a report."""

from flatminima.own.anew import Anew
from flatminima.own.beside import measured_beside
from flatminima.own.check import Finding, check_networks
from flatminima.own.measure import Measurement, plan_line, plan_radii, plan_surface, run_measurement
from flatminima.own.networks import OwnNetworks, open_networks

__all__ = [
    "Anew",
    "Finding",
    "Measurement",
    "OwnNetworks",
    "check_networks",
    "measured_beside",
    "open_networks",
    "plan_line",
    "plan_radii",
    "plan_surface",
    "run_measurement",
]

"""Options that were given and would do nothing, and would be believed to matter."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from flatminima.study.executors import open_executor

if TYPE_CHECKING:
    from flatminima.own import Measurement, OwnNetworks


def _refuse(given: Collection[str], options: Collection[str], where: str, cure: str) -> None:
    """Raise `ValueError` if an option was given where it does nothing.

    Args:
        given: All options that were given.
        options: Those that do nothing here.
        where: What they are for, and what there is instead.
        cure: What else to do than leave it out.
    """
    found = [f"--{name.replace('_', '-')}" for name in options if name in given]
    if found:
        raise ValueError(f"expected {' and '.join(found)} only {where}; leave it out{cure}")


def refuse_by_count(kind: str, given: Collection[str], options: dict[str, Any]) -> None:
    """What the command and the number of checkpoints decide, before anything is opened."""
    networks = len(options["weights"])
    if kind == "surface" and networks == 3:
        _refuse(
            given,
            ("seed", "scaling", "parameters"),
            "around one network, where the plane is random, got three networks, which span it",
            ", or name one checkpoint",
        )
    if kind == "surface" and networks == 1:
        _refuse(
            given,
            ("coordinates",),
            "for three networks, of which a point may be a mixture, got one",
            ", or name three checkpoints",
        )
    if kind == "radius" and options["parameters"] == "top":
        _refuse(
            given,
            ("precision",),
            "where more than the last layer moves, got that alone, which is always exact",
            "",
        )
    if kind == "check" and options["out"] is None:
        _refuse(
            given,
            ("name",),
            "with --out, for what is stored there, got nothing to be stored",
            ", or give --out",
        )
    if "executor" in options:
        refuse_by_executor(given, options)
    if "prefix" in given and not options["prefix"]:
        raise ValueError(
            "expected --prefix as what stands before the names in the checkpoints, got nothing;"
            " leave it out"
        )


def refuse_by_executor(given: Collection[str], options: dict[str, Any]) -> None:
    """What is said of several processes where there is one, and what no executor takes."""
    if options["executor"] == "serial":
        _refuse(
            given,
            ("workers", "address"),
            "with several processes, got them with --executor serial",
            ", or name --executor processes or ray",
        )
    open_executor(options["executor"], options["workers"], address=options["address"])


def refuse_by_network(kind: str, given: Collection[str], own: "OwnNetworks") -> None:
    """What the network decides."""
    from flatminima.own.check import has_noise

    network = type(own.network).__name__
    if not own.landscape.stores_statistics:
        _refuse(
            given,
            ("batchnorm",),
            f"for BatchNorm layers with running statistics, got {network} without any",
            "",
        )
    if kind == "check" and not has_noise(own):
        _refuse(
            given,
            ("threshold",),
            "for comparison with the noise of single precision, got a network without it",
            "",
        )


def refuse_where_exact(given: Collection[str], own: "OwnNetworks", made: "Measurement") -> None:
    """What the parameters that move decide."""
    from flatminima.own.measure import exact_anyway

    if "precision" in given and exact_anyway(own, made):
        _refuse(
            given,
            ("precision",),
            "where more than the last layer moves, got that alone, which is always exact",
            "",
        )

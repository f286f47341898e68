"""The commands on a user's own networks, and the options that they share."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from flatminima.cli import _own, _refusals

if TYPE_CHECKING:
    from flatminima.own import Anew, OwnNetworks


@dataclass(frozen=True)
class Asked:
    """What the shared options ask for.

    Attributes:
        own: The networks, with data and loss.
        name: What to call them in the store.
        title: And on the page.
        words: What the shared options say of the networks, as `open_networks` takes it.
        given: The options that were given, at whatever value.
    """

    own: Any  # `OwnNetworks`, whose room is imported when a command runs
    name: str
    title: str
    words: Mapping[str, Any]
    given: frozenset[str]

    def beside(
        self, subset: list[str] | None, metric: list[str] | None, per_class: bool
    ) -> "OwnNetworks":
        """The networks, of which more is measured than the loss."""
        from flatminima.own import measured_beside

        return measured_beside(
            self.own,
            subsets=subset or (),
            metrics=metric or (),
            per_class=per_class,
            limit=self.words["limit"],
        )

    def anew(
        self, kind: str, options: Mapping[str, Any], beside: Mapping[str, Any] | None = None
    ) -> "Anew":
        """What other processes make of the same words."""
        import torch

        from flatminima.own import Anew

        threads = torch.get_num_threads()
        return Anew.of(kind, self.words, beside or {}, options, threads=threads)


def _shared(
    model: Annotated[
        str,
        typer.Option(metavar="MODULE:NAME", help="Makes the network: net:build or net.py:build."),
    ],
    weights: Annotated[
        list[str], typer.Option(metavar="FILE...", help="Checkpoints: files or folders.")
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="MODULE:NAME", help="Returns data, or is data; or a built-in name: mnist."
        ),
    ],
    loss: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="cross_entropy, mse, binary_cross_entropy, next_token, model, or MODULE:NAME.",
        ),
    ] = "cross_entropy",
    weight: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME", help="What the loss 'model' is the mean over, of a batch."
        ),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Taken off the names in the checkpoints.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many samples.")] = (
        None
    ),
    batchnorm: Annotated[
        str, typer.Option(help="auto, recompute, keep, interpolate or batch.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="exact or fast.")] = "exact",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples per forward pass.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="By default all cores; one in each of several processes."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What to call it in the store and on the page.")
    ] = None,
) -> tuple[Any, str, str, dict[str, Any]]:
    """The networks, their name in the store, a title, and the words they were named by."""
    import torch

    from flatminima.own import open_networks

    if threads is not None:
        torch.set_num_threads(threads)
    words: dict[str, Any] = {
        "model": model,
        "weights": weights,
        "data": data,
        "loss": loss,
        "weight": weight,
        "prefix": prefix,
        "limit": limit,
        "batchnorm": batchnorm,
        "precision": precision,
        "batch_size": batch_size,
        "device": device,
    }
    own = open_networks(**words)
    return own, name or "networks", name or ", ".join(own.names), words


def on_networks(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the shared options before its own, given the networks that they name.

    An option that was given and would do nothing is refused: nobody should believe that a result
    depends on it.

    Args:
        command: Takes what the shared options ask for by position, its own options by keyword.
    """
    kind = command.__name__
    shared = inspect.signature(_shared).parameters
    hints = {**get_type_hints(command, include_extras=True), **_hints()}
    own = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]

    @functools.wraps(command)
    def called(*, context: Any, **options: Any) -> None:
        given = _given(context)
        _refusals.refuse_by_count(kind, given, options)
        if options.get("executor", "serial") != "serial":
            options["threads"] = options["threads"] or 1  # of a step; the others' are beside it
        networks, name, title, words = _shared(**{key: options.pop(key) for key in shared})
        _refusals.refuse_by_network(kind, given, networks)
        command(Asked(networks, name, title, words, given), **options)

    keywords = [each.replace(kind=each.KEYWORD_ONLY) for each in shared.values()]
    parameters = [
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        *(each.replace(annotation=hints[each.name]) for each in (*keywords, *own)),
    ]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called


def _given(context: Any) -> frozenset[str]:
    """The options that were given, at whatever value."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(
        name for name, source in sources.items() if source and source.name == "COMMANDLINE"
    )


def _hints() -> dict[str, Any]:
    """The annotations of the shared options."""
    given = dict(_shared.__annotations__)
    given.pop("return")
    return given


Out = Annotated[Path, typer.Option("--out", help="Folder in which results are stored.")]
Parameters = Annotated[str, typer.Option(help="What moves: all, top, or a glob of names.")]
Subset = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODULE:NAME...",
        help="Returns which samples to tell apart: a mask, numbers of groups, or either by name.",
    ),
]
Metric = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODULE:NAME...",
        help="Also measure this: a function of outputs and targets, a value per sample.",
    ),
]
Executor = Annotated[
    str, typer.Option(help="serial (in this process), processes, or ray (a Ray cluster).")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes; by default one per core, at most 8.")
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="For ray: the head of a cluster that is there, or auto; else one of its own.",
    ),
]
PerClass = Annotated[bool, typer.Option("--per-class", help="Tell the classes' losses apart.")]


def surface(
    asked: Asked,
    *,
    out: Out = Path("runs"),
    resolution: Annotated[int, typer.Option(min=2, help="Points along each axis.")] = 25,
    extent: Annotated[str | None, typer.Option(help="From,to along both axes.")] = None,
    coordinates: Annotated[str, typer.Option(help="isometric or barycentric.")] = "isometric",
    clip: Annotated[float | None, typer.Option(help="Stop points certain to be above.")] = None,
    seed: Annotated[int, typer.Option(help="Of a random plane around one network.")] = 0,
    scaling: Annotated[
        str, typer.Option(help="Of its directions: filter, layer or unit.")
    ] = "filter",
    parameters: Parameters = "all",
    subset: Subset = None,
    metric: Metric = None,
    per_class: PerClass = False,
    executor: Executor = "serial",
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Draw the loss on the plane through three of your networks, or around one."""
    from flatminima.own import plan_surface

    own = asked.beside(subset, metric, per_class)
    options: dict[str, Any] = {
        "resolution": resolution,
        "extent": _own.parse_extent(extent),
        "coordinates": coordinates,
        "clip": clip,
        "seed": seed,
        "scaling": scaling,
        "parameters": parameters,
    }
    made = plan_surface(own, **options)
    _refusals.refuse_where_exact(asked.given, own, made)
    beside = {"subsets": subset or (), "metrics": metric or (), "per_class": per_class}
    work = asked.anew("surface", options, {**beside, "limit": asked.words["limit"]})
    where = _own.Where(executor, workers, address, work)
    _own.measure(own, made, out=out, name=asked.name, title=asked.title, where=where)


def line(
    asked: Asked,
    *,
    out: Out = Path("runs"),
    resolution: Annotated[int, typer.Option(min=3, help="Points on the line.")] = 25,
    subset: Subset = None,
    metric: Metric = None,
    per_class: PerClass = False,
) -> None:
    """Follow the loss between two of your networks, and measure the barrier."""
    from flatminima.own import plan_line

    own = asked.beside(subset, metric, per_class)
    made = plan_line(own, resolution=resolution)
    _refusals.refuse_where_exact(asked.given, own, made)
    _own.measure(own, made, out=out, name=asked.name, title=asked.title)


def radius(
    asked: Asked,
    *,
    out: Out = Path("runs"),
    directions: Annotated[int, typer.Option(min=1, help="Random directions, both ways.")] = 10,
    threshold: Annotated[float, typer.Option(help="The rise of the loss.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the directions.")] = 0,
    parameters: Parameters = "all",
    tolerance: Annotated[float, typer.Option(help="Relative, of a radius.")] = 1e-3,
    max_radius: Annotated[float | None, typer.Option(help="Where a walk is given up.")] = None,
    executor: Executor = "serial",
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Measure how far your networks can be moved until the loss has risen."""
    from flatminima.own import plan_radii

    options: dict[str, Any] = {
        "directions": directions,
        "threshold": threshold,
        "seed": seed,
        "parameters": parameters,
        "tolerance": tolerance,
        "max_radius": max_radius,
    }
    made = plan_radii(asked.own, **options)
    where = _own.Where(executor, workers, address, asked.anew("radius", options))
    _own.measure(asked.own, made, out=out, name=asked.name, title=asked.title, where=where)


def check(
    asked: Asked,
    *,
    out: Annotated[
        Path | None, typer.Option(help="Also note it in this store, and on its page.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Of the radii you mean to measure.")] = 0.05,
    resolution: Annotated[int, typer.Option(min=2, help="Of the grid whose cost you ask.")] = 25,
) -> None:
    """Is it right? Check your networks, data and loss, and say what a grid would cost."""
    good = _own.check(
        asked.own,
        threshold=threshold,
        resolution=resolution,
        out=out,
        name=asked.name,
        title=asked.title,
    )
    if not good:
        raise typer.Exit(1)

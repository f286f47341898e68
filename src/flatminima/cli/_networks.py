"""The commands on a user's own networks, and the options that they share."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from flatminima.cli import _own

if TYPE_CHECKING:
    from flatminima.own import OwnNetworks


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
    threads: Annotated[int | None, typer.Option(min=1, help="By default all cores.")] = None,
    name: Annotated[
        str | None, typer.Option(help="What to call it in the store and on the page.")
    ] = None,
) -> "tuple[OwnNetworks, str, str]":
    """The networks, their name in the store, and a title."""
    import torch

    from flatminima.own import open_networks

    if threads is not None:
        torch.set_num_threads(threads)
    own = open_networks(
        model,
        weights,
        data,
        loss=loss,
        weight=weight,
        prefix=prefix,
        limit=limit,
        batchnorm=batchnorm,
        precision=precision,
        batch_size=batch_size,
        device=device,
    )
    return own, name or "networks", name or ", ".join(own.names)


def on_networks(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the shared options before its own, given the networks that they name.

    Args:
        command: Takes the networks, a name and a title by position, its own options by keyword.
    """
    shared = inspect.signature(_shared).parameters
    hints = {**get_type_hints(command, include_extras=True), **_hints()}
    own = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]

    @functools.wraps(command)
    def called(**options: Any) -> None:
        own_networks, name, title = _shared(**{key: options.pop(key) for key in shared})
        command(own_networks, name, title, **options)

    keywords = [each.replace(kind=each.KEYWORD_ONLY) for each in shared.values()]
    parameters = [each.replace(annotation=hints[each.name]) for each in (*keywords, *own)]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called


def _hints() -> dict[str, Any]:
    """The annotations of the shared options."""
    given = dict(_shared.__annotations__)
    given.pop("return")
    return given


Own = Any  # `OwnNetworks`, whose room is imported when a command runs
Out = Annotated[Path, typer.Option("--out", help="Folder in which results are stored.")]
Parameters = Annotated[str, typer.Option(help="What moves: all, top, or a glob of names.")]


def surface(
    own: Own,
    store_name: str,
    title: str,
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
) -> None:
    """Draw the loss on the plane through three of your networks, or around one."""
    from flatminima.own import plan_surface

    made = plan_surface(
        own,
        resolution=resolution,
        extent=_own.parse_extent(extent),
        coordinates=coordinates,
        clip=clip,
        seed=seed,
        scaling=scaling,
        parameters=parameters,
    )
    _own.measure(own, made, out=out, name=store_name, title=title)


def line(
    own: Own,
    store_name: str,
    title: str,
    *,
    out: Out = Path("runs"),
    resolution: Annotated[int, typer.Option(min=3, help="Points on the line.")] = 25,
) -> None:
    """Follow the loss between two of your networks, and measure the barrier."""
    from flatminima.own import plan_line

    made = plan_line(own, resolution=resolution)
    _own.measure(own, made, out=out, name=store_name, title=title)


def radius(
    own: Own,
    store_name: str,
    title: str,
    *,
    out: Out = Path("runs"),
    directions: Annotated[int, typer.Option(min=1, help="Random directions, both ways.")] = 10,
    threshold: Annotated[float, typer.Option(help="The rise of the loss.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the directions.")] = 0,
    parameters: Parameters = "all",
    tolerance: Annotated[float, typer.Option(help="Relative, of a radius.")] = 1e-3,
    max_radius: Annotated[float | None, typer.Option(help="Where a walk is given up.")] = None,
) -> None:
    """Measure how far your networks can be moved until the loss has risen."""
    from flatminima.own import plan_radii

    made = plan_radii(
        own,
        directions=directions,
        threshold=threshold,
        seed=seed,
        parameters=parameters,
        tolerance=tolerance,
        max_radius=max_radius,
    )
    _own.measure(own, made, out=out, name=store_name, title=title)


def check(
    own: Own,
    store_name: str,
    title: str,
    *,
    out: Annotated[
        Path | None, typer.Option(help="Also note it in this store, and on its page.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Of the radii you mean to measure.")] = 0.05,
    resolution: Annotated[int, typer.Option(min=2, help="Of the grid whose cost you ask.")] = 25,
) -> None:
    """Is it right? Check your networks, data and loss, and say what a grid would cost."""
    good = _own.check(
        own, threshold=threshold, resolution=resolution, out=out, name=store_name, title=title
    )
    if not good:
        raise typer.Exit(1)

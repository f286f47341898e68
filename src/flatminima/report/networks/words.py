"""What is said of anything measured, and tables."""

import html
from collections.abc import Sequence

import numpy as np
import xarray as xr


def names_of(data: xr.Dataset) -> list[str]:
    """Of the networks."""
    return [str(name) for name in np.atleast_1d(data.attrs.get("networks", []))]


def subsets_of(data: xr.Dataset) -> dict[str, int]:
    """The groups of samples that were told apart, with how many are in each."""
    names, samples = (np.atleast_1d(data.attrs.get(k, [])) for k in ("subsets", "subset_samples"))
    return {str(name): int(count) for name, count in zip(names, samples, strict=True)}


def metrics_of(data: xr.Dataset) -> list[str]:
    """What else was measured of every sample."""
    return [str(name) for name in np.atleast_1d(data.attrs.get("metrics", []))]


def about(data: xr.Dataset) -> str:
    """Data, loss and policy of anything measured."""
    attrs = data.attrs
    loss = str(attrs["loss_name"]).replace("_", " ")
    policy = str(attrs["batchnorm"])
    norm = "no BatchNorm" if policy == "none" else f"BatchNorm policy {policy}"
    way = f"{attrs['precision']} arithmetic"
    if not attrs.get("repeated", attrs.get("sampled", 1)):
        way = "exact arithmetic (fast was asked for; nothing was to be gained by it here)"
    elif "sampled" in attrs:
        way = (
            f"exact arithmetic around the crossings, the way there over {int(attrs['sampled']):,}"
            f" of them that were drawn by importance (a rise differed by"
            f" {attrs['largest_difference']:.2g} at most)"
        )
    return (
        f"Mean {loss} over {int(attrs['samples']):,} samples of {attrs['dataset']}, {way}, {norm}."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself."""
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Table"><table class="plain">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )

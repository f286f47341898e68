"""The flatness radius: how far one can walk in a random direction before the loss has risen.

`r_u(eps) = inf{t > 0 : L(w + t u) - L(w) >= eps}` with `u` uniform on the unit sphere of the moved
parameters. On a quadratic `r = sqrt(2 eps / u'Hu)`, so a random direction sees the average
curvature, never the worst.
"""

from collections.abc import Collection
from functools import partial

import numpy as np
import xarray as xr

from flatminima.flatness._crossing import first_crossings
from flatminima.flatness._perturbed import Perturbed, perturbed_stepwise
from flatminima.flatness._sample import sample_of, stepwise_by_sample
from flatminima.flatness._walk import CENSORED, CROSSED, NON_FINITE, OUTCOMES, Radii, Walk, stepwise
from flatminima.landscape import Landscape
from flatminima.minimum import State
from flatminima.subspace import Subspace, norm
from flatminima.types import Real

# The search starts at this share of the moved parameters' norm.
_GUESS = 0.1
# Steps evaluated at once in a stepwise walk: a round costs a product of the first layer per
# direction, a step only what comes after it.
_STRIDE = 4


def flatness_radius(
    landscape: Landscape,
    state: State,
    *,
    threshold: Real = 0.05,
    directions: int = 20,
    seed: int = 0,
    parameters: str | Collection[str] = "all",
    protocol: str = "crossing",
    step: Real = 1.0,
    tolerance: Real = 1e-3,
    max_radius: Real | None = None,
    buffers: str = "policy",
    first: int = 0,
) -> xr.Dataset:
    """Measure the flatness radius of a state along random directions.

    `crossing` walks along +u and -u of every direction, all rays at once: the curve through what is
    known of a ray predicts its crossing, the way there is scanned, so that an earlier one is found,
    and a bracket is closed around it, by Chandrupatla's method where predictions do not. `stepwise`
    is the protocol of the published study: whole steps along +u until the loss has changed by the
    threshold either way; the radius is the last step before that, a bias of about half a step
    downwards. With `buffers="perturb"` it repeats a fault of that study: one unit vector spans the
    parameters and the running means, variances and counters of all BatchNorm layers, and these are
    moved too.

    A landscape of `precision="fast"` looks for the way over a sample of its examples, drawn by
    importance: where along a ray the loss may cross, and that it does not before. The bracket that
    a radius lies in, the steps that end a stepwise walk, and whatever lies within the largest
    difference found between sample and all, are evaluated over all examples, in exact arithmetic.

    Args:
        landscape: The network, data and loss.
        state: Where to measure.
        threshold: The rise of the loss that ends the walk.
        directions: How many random directions; `crossing` walks two rays along each.
        seed: Seed of the directions. Direction k is the same for every network of one architecture
            and whatever else is measured.
        parameters: What moves: "all" (trainable ones), "top", a glob, or names.
        protocol: "crossing" or "stepwise".
        step: Length of a step, `stepwise` only.
        tolerance: Relative width of the bracket a radius lies in, `crossing` only.
        max_radius: Where a walk is given up; by default twice the norm of the moved parameters.
        buffers: "policy": the landscape's BatchNorm policy decides. "perturb": the published fault,
            for `stepwise` and "all" parameters only, under `keep` whatever the landscape's policy.
        first: Index of the first direction, to measure a sequence in parts.

    Returns:
        A dataset over `direction` and `sign` with `radius`, `outcome` (0 crossed, 1 censored, not
        reached by `max_radius`, 2 non_finite, the loss was not finite before it had risen),
        `evaluations` and `reentries` (how often the loss was seen to fall below the threshold
        again).
        Where a ray did not cross, `radius` is the last distance known to be below. With
        `buffers="perturb"` also `negative_variances` (how many running variances were negative,
        with the layer's eps added, at the step that ended the walk; at the last step if it is
        censored) and `first_negative` (the distance at which the first of them falls below zero, in
        closed form, whether or not the walk went so far; infinite where none ever does), and the
        attributes `smallest_variance` (of the state itself) and `moved_buffers` (how many numbers
        moved beside the parameters; `moved` and `norm` are those of the parameters alone).
        With `precision="fast"` the attributes `sampled` (over how many examples the way was looked
        for; 0 where that would have saved nothing) and `largest_difference` (found between a rise
        over them and over all); `evaluations` are those over all.

    Raises:
        ValueError: For impossible settings, a state whose own loss is not finite, or
            `buffers="perturb"` for a network without running statistics.
    """
    _check(threshold, directions, protocol, step, tolerance, max_radius)
    threshold, step, tolerance = float(threshold), float(step), float(tolerance)
    _check_buffers(buffers, protocol, parameters)
    origin = landscape.state(state)
    names = landscape.parameter_names(parameters)
    length = norm({name: origin.parameters[name] for name in names})
    limit = 2.0 * length if max_radius is None else float(max_radius)
    if limit <= 0.0:
        raise ValueError(
            "expected moved parameters that are not all zero, got norm 0; give max_radius"
        )
    indices = range(first, first + directions)
    walk: Walk | Perturbed
    if buffers == "perturb":
        walk = perturbed_stepwise(
            landscape,
            origin,
            names,
            indices=indices,
            seed=seed,
            threshold=threshold,
            step=step,
            limit=limit,
            led=landscape.precision == "fast",
        )
        result = walk.radii
        sampled, difference = walk.sampled, walk.difference
    else:
        subspace = Subspace.random(origin, directions, seed, parameters=names, first=first)
        # A crossing lies where the loss has risen by 0.05: too little to find it in half precision.
        walk = Walk(partial(landscape.losses, precision="exact"), subspace, threshold)
        sample = sample_of(landscape, subspace, walk) if landscape.precision == "fast" else None
        if protocol == "crossing":
            guess = _GUESS * length or limit
            result = first_crossings(
                walk, guess=guess, limit=limit, tolerance=tolerance, sample=sample
            )
        elif sample is None:
            result = stepwise(walk, step=step, limit=limit, stride=_STRIDE)
        else:
            result = stepwise_by_sample(walk, sample, step=step, limit=limit, stride=_STRIDE)
        sampled, difference = (sample.samples, sample.difference) if sample else (0, 0.0)
    dataset = _dataset(
        result,
        np.array(indices),
        [1, -1] if protocol == "crossing" else [1],
        {
            "loss": walk.loss,
            "threshold": threshold,
            "norm": length,
            "moved": sum(origin.parameters[name].numel() for name in names),
            "parameters": parameters if isinstance(parameters, str) else ",".join(names),
            "layer": landscape.top_layer() if parameters == "top" else "",
            "protocol": protocol,
            "step": step if protocol == "stepwise" else 0.0,
            "tolerance": tolerance if protocol == "crossing" else 0.0,
            "max_radius": limit,
            "seed": seed,
            "buffers": buffers,
            "batchnorm": walk.batchnorm,
            "path": walk.path,
            "precision": "exact",
            "loss_name": landscape.loss_name,
            "samples": len(landscape.dataset),
            "dataset": landscape.dataset.name,
            "split": landscape.dataset.split,
            "data_digest": landscape.dataset.digest,
        },
    )
    if landscape.precision == "fast":
        dataset = dataset.assign_attrs(
            precision="fast", sampled=sampled, largest_difference=difference
        )
    return _with_variances(dataset, walk) if isinstance(walk, Perturbed) else dataset


def _dataset(
    result: Radii,
    directions: np.ndarray,
    signs: list[int],
    attrs: dict[str, str | float | int],
) -> xr.Dataset:
    shape = (len(directions), len(signs))
    dims = ("direction", "sign")
    dataset = xr.Dataset(
        {
            "radius": (dims, result.radius.reshape(shape)),
            "outcome": (dims, result.outcome.astype(np.int8).reshape(shape)),
            "evaluations": (dims, result.evaluations.astype(np.int32).reshape(shape)),
            "reentries": (dims, result.reentries.astype(np.int32).reshape(shape)),
        },
        coords={"direction": directions, "sign": signs},
        attrs=attrs,
    )
    dataset["radius"].attrs["long_name"] = "distance in weight space"
    dataset["outcome"].attrs.update(
        flag_values=[CROSSED, CENSORED, NON_FINITE], flag_meanings=OUTCOMES
    )
    return dataset


def _with_variances(dataset: xr.Dataset, walk: Perturbed) -> xr.Dataset:
    """The dataset with what became of the running variances."""
    dims = ("direction", "sign")
    dataset = dataset.assign(
        negative_variances=(dims, walk.negative_variances.astype(np.int32)[:, None]),
        first_negative=(dims, walk.first_negative[:, None]),
    )
    dataset["first_negative"].attrs["long_name"] = "distance in weight space"
    return dataset.assign_attrs(
        smallest_variance=walk.smallest_variance, moved_buffers=walk.moved_buffers
    )


def _check(
    threshold: Real,
    directions: int,
    protocol: str,
    step: Real,
    tolerance: Real,
    max_radius: Real | None,
) -> None:
    if protocol not in ("crossing", "stepwise"):
        raise ValueError(
            f"expected protocol 'crossing' or 'stepwise', got {protocol!r}; check the spelling"
        )
    if directions < 1:
        raise ValueError(f"expected at least 1 direction, got {directions}; 20 is usual")
    named = {"threshold": threshold, "step": step, "tolerance": tolerance}
    if max_radius is not None:
        named["max_radius"] = max_radius
    for name, value in named.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"expected a positive {name}, got {value}; give a finite one above 0")


def _check_buffers(buffers: str, protocol: str, parameters: str | Collection[str]) -> None:
    """Raise `ValueError` unless the buffers' treatment is known and goes with the rest."""
    if buffers not in ("policy", "perturb"):
        raise ValueError(
            f"expected buffers 'policy' or 'perturb', got {buffers!r}; check the spelling"
        )
    if buffers == "perturb" and protocol != "stepwise":
        raise ValueError(
            f"expected protocol 'stepwise' with buffers='perturb', got {protocol!r}; it only"
            " repeats a fault of the published walk"
        )
    if buffers == "perturb" and parameters != "all":
        raise ValueError(
            f"expected parameters 'all' with buffers='perturb', got {parameters!r}; the published"
            " walk moved everything"
        )

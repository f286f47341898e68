"""A walk over a sample of the examples, by which one over all of them finds its way.

A mean over a tenth of the examples is known for a tenth of the price, and off by a few hundredths.
That is enough to say where along a ray to look, and that far before a crossing there is none; what
lies within the difference from all examples is decided by all of them.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from flatminima.flatness._walk import CENSORED, Radii, Walk, ended, steps_within, stepwise
from flatminima.landscape import Landscape
from flatminima.minimum import Minimum
from flatminima.subspace import Subspace
from flatminima.types import PerPoint

# A sample is this share of the examples, within limits.
_SHARE, _FEWEST, _MOST = 10, 200, 3_000


class Sample:
    """A walk over some of the examples, and how far it may be off.

    Attributes:
        walk: The walk.
        samples: Over how many examples it is.
        difference: The largest difference found between a rise over them and over all. Rises are
            compared where they are about to cross; before that they are smaller, and so is what
            they are off by.
    """

    def __init__(self, walk: Walk, samples: int, difference: float = 0.0) -> None:
        self.walk, self.samples = walk, samples
        self.difference = difference

    def compare(self, rise: float, rise_over_all: float) -> None:
        """Take note of a point that was evaluated in both ways."""
        self.difference = max(self.difference, abs(float(rise) - float(rise_over_all)))


def sample_of(landscape: Landscape, subspace: Subspace, walk: Walk) -> Sample | None:
    """A walk like the given one over a sample of the landscape's examples, where one saves work.

    It does not where only the top layer moves, whose inputs are kept, where BatchNorm's statistics
    are found anew at every point, nor among few examples.
    """
    if walk.path == "top" or walk.batchnorm not in ("none", "keep"):
        return None
    some = some_of(landscape, subspace.origin)
    if some is None:
        return None
    losses = partial(some.losses, precision="exact")
    return Sample(Walk(losses, subspace, walk.threshold), len(some.dataset))


def some_of(landscape: Landscape, origin: Minimum) -> Landscape | None:
    """The same over a sample of its examples, if there are enough and one can be drawn."""
    count = min(len(landscape.dataset) // _SHARE, _MOST)
    return None if count < _FEWEST else landscape._sampled(origin, count)


def stepwise_by_sample(
    walk: Walk, sample: Sample, *, step: float, limit: float, stride: int
) -> Radii:
    """`stepwise` where a sample says which steps are not worth a look.

    The step that ends a walk is one over all examples. Before it the sample alone may say that the
    loss has not changed enough, where it is further from the threshold than it may be off.
    """
    rays, steps = range(walk.directions), steps_within(limit, step)
    by_sample = stepwise(sample.walk, step=step, limit=limit, stride=stride)
    last = np.rint(by_sample.radius / step).astype(np.int64)
    wanted = [(ray, number) for ray in rays for number in _around(int(last[ray]), steps)]
    while wanted:
        rises = _rises(walk, wanted, step)
        for (ray, number), rise in zip(wanted, rises, strict=True):
            known = sample.walk.known.get((ray, number * step))
            if known is not None and np.isfinite([known, rise]).all():
                sample.compare(known, rise)
        ends = [_first_in_doubt(walk, sample, ray, step, steps) for ray in rays]
        wanted = [
            (ray, number)
            for ray, number in enumerate(ends)
            if number <= steps and (ray, number * step) not in walk.known
        ]
    changes = [walk.known.get((ray, number * step)) for ray, number in enumerate(ends)]
    return Radii(
        radius=(np.array(ends) - 1) * step,
        outcome=np.array([CENSORED if rise is None else ended(rise) for rise in changes]),
        evaluations=np.array([walk.evaluations(ray, 1) for ray in rays]),
        reentries=np.zeros(len(rays), dtype=np.int64),
    )


def _around(last: int, steps: int) -> list[int]:
    """The last step of a walk and the one that ended it."""
    return [number for number in (last, last + 1) if 1 <= number <= steps]


def _rises(walk: Walk, wanted: Sequence[tuple[int, int]], step: float) -> PerPoint:
    """The rises at some steps of some rays."""
    rays, numbers = np.array(wanted).T
    return walk.rise(numbers * step, rays, np.ones_like(rays))


def _first_in_doubt(walk: Walk, sample: Sample, ray: int, step: float, steps: int) -> int:
    """The first step that is over, or may be; one beyond the last if there is none."""
    for number in range(1, steps + 1):
        key = (ray, number * step)
        change, doubt = walk.known.get(key), 0.0
        if change is None:
            change, doubt = sample.walk.known.get(key, np.nan), sample.difference
        if not abs(change) + doubt < walk.threshold:
            return number
    return steps + 1

"""The first crossing along every ray, certified by a bracket, in few evaluations.

Every ray is searched by itself; rays share only the rounds in which they are evaluated. The rise of
a loss along a ray is close to a power of the distance, so a curve through the logarithms of what is
already known predicts where it crosses, and nothing is taken on the curve's word: a radius lies
between two evaluated points, one below and one above, that are closer than the tolerance.

A sample of the examples may lead the way. What it says of a ray saves evaluations over all of them,
whose points close the bracket all the same.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.interpolate import KroghInterpolator
from scipy.optimize import elementwise

from flatminima.flatness._sample import Sample
from flatminima.flatness._walk import CENSORED, CROSSED, NON_FINITE, Radii, Walk

# Up to the first crossing no two neighbours are further apart than this share of its distance, so
# that an earlier crossing is found unless the loss has fallen again within one such gap.
_GAP = 0.25
# A prediction is overshot by this much, so that the crossing lies before it.
_MARGIN = 1.1
# How many predictions are followed before a search doubles its distance, and before a bracket is
# left to Chandrupatla's method.
_APPROACHES, _CLOSURES = 4, 3
# No prediction moves a search by a larger factor.
_LEAP = 4.0
# How often gaps are filled: from any guess 4^20 = 1e12 times down.
_FILLS = 20
# Before a loss that is not finite a crossing is looked for down to this share of the distance.
_BEFORE = 1e-8
# How closely a crossing is known over a sample, how often a ray is led by it, and within what share
# of a known point a prediction is trusted to the tolerance.
_ROUGH, _AIMS, _NEAR = 0.05, 4, 0.003

Distances = Float64[np.ndarray, " points"]


def first_crossings(
    walk: Walk, *, guess: float, limit: float, tolerance: float, sample: Sample | None = None
) -> Radii:
    """Where the loss has first risen by the threshold, along +u and -u of every direction.

    Args:
        walk: The rays.
        guess: Where the search begins.
        limit: Where it is given up.
        tolerance: Relative width of the bracket that a radius lies in.
        sample: What leads the way.
    """
    if sample is None:
        rays = _rays(walk)
        _evaluate(walk, [(ray, [min(guess, limit)]) for ray in rays])
    else:
        guides = _rays(sample.walk)
        _evaluate(sample.walk, [(guide, [min(guess, limit)]) for guide in guides])
        _search(sample.walk, guides, limit=limit, tolerance=max(_ROUGH, tolerance))
        rays = _led(walk, sample, guides, guess=guess, limit=limit, tolerance=tolerance)
    _search(walk, rays, limit=limit, tolerance=tolerance)
    return Radii(
        radius=np.array([ray.radius() for ray in rays]),
        outcome=np.array([ray.outcome for ray in rays]),
        evaluations=np.array([len(ray.distances) for ray in rays]),
        reentries=np.array([ray.reentries for ray in rays]),
    )


def _rays(walk: Walk) -> list["_Ray"]:
    return [_Ray(walk, k, sign) for k in range(walk.directions) for sign in (1, -1)]


def _led(
    walk: Walk,
    sample: Sample,
    guides: Sequence["_Ray"],
    *,
    guess: float,
    limit: float,
    tolerance: float,
) -> list["_Ray"]:
    """Rays that are known at and around the crossings which a sample predicts."""
    rays = _rays(walk)
    starts = [guide.start(min(guess, limit)) for guide in guides]
    _evaluate(walk, [(ray, [start]) for ray, start in zip(rays, starts, strict=True)])
    for ray, guide, start in zip(rays, guides, starts, strict=True):
        if start in guide.distances and np.isfinite(ray.rises[0]):
            ray.guide = guide
            sample.compare(guide.rises[np.searchsorted(guide.distances, start)], ray.rises[0])
    for ray in rays:
        ray.doubt = sample.difference
    for _ in range(_AIMS):
        _evaluate(walk, [(ray, ray.aimed(limit, tolerance)) for ray in rays])
    return rays


def _search(walk: Walk, rays: Sequence["_Ray"], *, limit: float, tolerance: float) -> None:
    """Go on along rays known somewhere, until each has its bracket or has come to its end."""
    for _ in range(_APPROACHES):
        _evaluate(walk, [(ray, ray.approach(limit)) for ray in rays])
    while _evaluate(walk, [(ray, ray.doubled(limit)) for ray in rays]):
        pass
    for _ in range(_FILLS):
        if _evaluate(walk, [(ray, ray.filling()) for ray in rays]):
            continue
        if all(ray.is_closed(tolerance) for ray in rays):
            break
        for _ in range(_CLOSURES):
            _evaluate(walk, [(ray, ray.closing(tolerance)) for ray in rays])
        _chandrupatla(walk, rays, tolerance)


class _Ray:
    """What is known along one ray, in order of distance.

    Attributes:
        direction: Index of the direction within the walk.
        sign: Which way along it.
        distances: Where the loss is known, ascending.
        rises: By how much it has risen there; NaN where it is not finite.
        guide: The same ray over a sample of the examples.
        doubt: By how much that may be off.
    """

    guide: "_Ray | None" = None
    doubt: float = 0.0

    def __init__(self, walk: Walk, direction: int, sign: int) -> None:
        self.direction, self.sign = direction, sign
        self.distances, self.rises = np.empty(0), np.empty(0)
        self._threshold = walk.threshold

    def add(self, distances: Distances, rises: Distances) -> None:
        order = np.argsort(all_distances := np.append(self.distances, distances))
        self.distances = all_distances[order]
        self.rises = np.append(self.rises, rises)[order]

    @property
    def over(self) -> Bool[np.ndarray, " points"]:
        """Where the walk is over: the loss has risen, or is not finite."""
        return ~(self.rises < self._threshold)

    @property
    def event(self) -> int | None:
        """The first point where the walk is over."""
        return int(np.argmax(self.over)) if self.over.any() else None

    @property
    def outcome(self) -> int:
        if self.event is None:
            return CENSORED
        return CROSSED if np.isfinite(self.rises[self.event]) else NON_FINITE

    @property
    def bracket(self) -> tuple[float, float]:
        """The last point before the event, and the event; infinitely far while there is none."""
        event = self.event
        if event is None:
            return float(self.distances[-1]), np.inf
        return float(self.distances[event - 1]) if event else 0.0, float(self.distances[event])

    @property
    def reentries(self) -> int:
        """How often the loss was seen to fall below the threshold again."""
        after = self.over[self.event or 0 :]
        seen = int((after[:-1] & ~after[1:]).sum())
        return seen if self.guide is None else max(seen, self.guide.reentries)

    def radius(self) -> float:
        """The crossing on the chord of the bracket; else the last distance known to be below."""
        if self.event is None:
            return float(self.distances[-1])
        low, high = self.bracket
        if self.outcome == NON_FINITE:
            return low
        below = self.rises[self.event - 1] if self.event else 0.0
        start, end = _signed_root(np.array([below, self.rises[self.event]]), self._threshold)
        # Numbers so close to the threshold that their roots are one lie at the crossing, both.
        share = start / (start - end) if start < end else 0.5
        return float(low + (high - low) * share)

    def start(self, guess: float) -> float:
        """Where a ray over all examples is looked at first, if this is its guide."""
        if self.outcome == NON_FINITE:
            return guess
        return float(self.distances[-1 if self.event is None else self.event])

    def aimed(self, limit: float, tolerance: float) -> list[float]:
        """Points where the loss crosses, as a guide has it that was corrected by what is known.

        The first correction is by how much the one point that is known has risen more than its
        guide, the others by the points themselves. A prediction far from all of them is tried
        alone.
        """
        if self.guide is None or (self.event is not None and self.is_closed(tolerance)):
            return []
        expected = self._predicted()
        if len(self.distances) == 1:
            at = np.searchsorted(self.guide.distances, self.distances[0])
            rises = np.array([self.rises[0], self.guide.rises[at]])
            if not (rises > 0.0).all():
                return []
            expected = self.guide._predicted(rises[0] / rises[1])
        if not 0.0 < expected < limit:
            return []
        if np.abs(np.log(self.distances / expected)).min() > _NEAR:
            return [expected]
        return self._around(expected, tolerance)

    def approach(self, limit: float) -> list[float]:
        """A point just beyond where the loss is predicted to cross, unless one is known."""
        expected = self._predicted()
        if self.event is None:
            far = float(self.distances[-1])
            ahead = 2.0 * far if np.isnan(expected) else _MARGIN * max(expected, far)
            return [min(ahead, _LEAP * far, limit)] if far < limit else []
        low, high = self.bracket
        nearer = max(_MARGIN * expected, high / _LEAP)
        return [nearer] if low < nearer < high / _MARGIN**4 else []

    def doubled(self, limit: float) -> list[float]:
        """Twice as far, while the loss has not risen."""
        far = float(self.distances[-1])
        return [min(2.0 * far, limit)] if self.event is None and far < limit else []

    def filling(self) -> list[float]:
        """Points in every gap, up to the crossing, that is too wide for its distance.

        The gap that the crossing lies in is closed by refining it, unless it is wide.
        """
        doubted = self._doubted()
        if doubted:
            return doubted
        before = np.append(0.0, self._below())
        if self.event is None:
            return _filled(before, _GAP * self.distances[-1])
        low, high = self.bracket
        if self.outcome == NON_FINITE:
            points = _filled(before, _GAP * high)
            wide = high - low > _BEFORE * high
            return points or (_inside(low, high, 8) if wide else [])
        if high - low > high / 2.0:
            return _filled(np.append(before, high), _GAP * high)
        expected = float(np.clip(self._predicted(), low, high))
        return _filled(np.append(before, expected), _GAP * expected)

    def closing(self, tolerance: float) -> list[float]:
        """Points on both sides of the predicted crossing, closer together than the tolerance.

        In a wide bracket the predicted point itself, for a better prediction; one point is enough
        where an end of the bracket is close.
        """
        if self.is_closed(tolerance):
            return []
        low, high = self.bracket
        expected = self._predicted()
        if high - low > _GAP * expected:
            return [expected] if low < expected < high else []
        return self._around(expected, tolerance)

    def is_closed(self, tolerance: float) -> bool:
        """Whether nothing is left to refine."""
        if self.outcome != CROSSED:
            return True
        low, high = self.bracket
        return high - low <= tolerance * high

    def _around(self, expected: float, tolerance: float) -> list[float]:
        """Points on both sides of a prediction, or one where an end of the bracket is close."""
        low, high = self.bracket
        width = 0.9 * tolerance * expected
        points = [expected - width / 2.0, expected + width / 2.0]
        if low > points[0] - width / 3.0:
            points = [low + width]
        elif high < points[1] + width / 3.0:
            points = [high - width]
        return [point for point in points if low < point < high]

    def _below(self) -> Distances:
        """Where the walk is known not to be over yet, by all examples or surely by the guide."""
        own = self.distances[: self.event]
        if self.guide is None:
            return own
        surely = self.guide.rises + self.doubt < self._threshold
        return np.union1d(own, self.guide.distances[surely & self._before(self.guide.distances)])

    def _doubted(self) -> list[float]:
        """Where the guide is surely over, and all examples are not known to be."""
        if self.guide is None:
            return []
        surely = ~(self.guide.rises - self.doubt < self._threshold)
        there = self.guide.distances[surely & self._before(self.guide.distances)]
        return [float(distance) for distance in np.setdiff1d(there, self.distances)]

    def _before(self, distances: Distances) -> Bool[np.ndarray, " points"]:
        """Which distances lie before the event, or before all that is known while there is none."""
        return distances < float(self.distances[-1 if self.event is None else self.event])

    def _predicted(self, lift: float = 1.0) -> float:
        """Where the loss is expected to cross, by the curve through what is known of it.

        NaN where it has not risen anywhere.

        Args:
            lift: By what the rises are multiplied.
        """
        known = (self.rises > 0.0) & np.isfinite(self.rises)
        if not known.any():
            return float("nan")
        off, log = np.log(lift * self.rises[known] / self._threshold), np.log(self.distances[known])
        near = np.sort(np.argsort(np.abs(off), kind="stable")[:4])
        off, log = off[near], log[near]
        after = int(np.searchsorted(off, 0.0))
        rising = bool((np.diff(off) > 0.0).all())
        if rising and 0 < after < len(off):
            crossing = float(KroghInterpolator(off, log)(0.0))
            if log[after - 1] < crossing < log[after]:
                return float(np.exp(crossing))
        # As if by a power between the first and the fourth; at a minimum it is the second.
        nearest = int(np.argmin(np.abs(off)))
        power = 0.5
        if rising and len(off) > 1:
            power = float(np.clip((log[-1] - log[-2]) / (off[-1] - off[-2]), 0.25, 1.0))
        return float(np.exp(log[nearest] - power * off[nearest]))


def _evaluate(walk: Walk, wanted: Iterable[tuple[_Ray, list[float]]]) -> bool:
    """Evaluate points of many rays at once; whether there were any."""
    pairs = [(ray, distance) for ray, distances in wanted for distance in distances]
    if not pairs:
        return False
    distances = np.array([distance for _, distance in pairs])
    rises = walk.rise(
        distances,
        np.array([ray.direction for ray, _ in pairs]),
        np.array([ray.sign for ray, _ in pairs]),
    )
    for (ray, _), distance, rise in zip(pairs, distances, rises, strict=True):
        ray.add(np.array([distance]), np.array([rise]))
    return True


def _chandrupatla(walk: Walk, rays: Sequence[_Ray], tolerance: float) -> None:
    """Close the brackets that predictions have not closed."""
    left = [ray for ray in rays if not ray.is_closed(tolerance)]
    if not left:
        return

    def signed_root(distance: Distances, index: Int64[np.ndarray, " points"]) -> Distances:
        # On a quadratic this is linear in the distance, and a secant hits the crossing at once.
        chosen = [left[i] for i in index]
        new = [
            (ray, [float(t)])
            for ray, t in zip(chosen, distance, strict=True)
            if t > 0.0 and t not in ray.distances
        ]
        _evaluate(walk, new)
        rises = [
            ray.rises[np.searchsorted(ray.distances, t)] if t > 0.0 else 0.0
            for ray, t in zip(chosen, distance, strict=True)
        ]
        return _signed_root(np.array(rises), walk.threshold)

    lows, highs = np.transpose([ray.bracket for ray in left])
    elementwise.find_root(
        signed_root,
        (lows, highs),
        args=(np.arange(len(left)),),
        # fatol 0: a flat crossing must not pass for a found one; x decides.
        tolerances={"xrtol": tolerance, "xatol": 0.0, "fatol": 0.0, "frtol": 0.0},
    )


def _signed_root(rise: Distances, threshold: float) -> Distances:
    """The root of the rise with its sign, less that of the threshold."""
    return np.asarray(np.sign(rise) * np.sqrt(np.abs(rise)) - np.sqrt(threshold))


def _filled(edges: Distances, widest: float) -> list[float]:
    """Points that leave no gap wider than that between neighbours."""
    return [
        point
        for low, high in pairwise(edges.tolist())
        for point in _inside(low, high, int(np.ceil((high - low) / widest * (1.0 - 1e-9))))
    ]


def _inside(low: float, high: float, cells: int) -> list[float]:
    """The inner edges of equal cells."""
    return [float(edge) for edge in np.linspace(low, high, cells + 1)[1:-1]]

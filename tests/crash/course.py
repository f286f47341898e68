"""How a run goes that nothing disturbs, and moments in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Course:
    """How long an undisturbed run is silent before each of its lines, and before its end.

    Attributes:
        head: Seconds before each line of what it announces.
        jobs: Before each job's line; the first holds the loading of libraries.
        tail: Before each line on the report and the end, and before the process is over.
    """

    head: tuple[float, ...]
    jobs: tuple[float, ...]
    tail: tuple[float, ...]

    @classmethod
    def of(cls, said: Sequence[tuple[float, str]], ended: float) -> "Course":
        """From the lines of a whole run and the seconds after which it ended."""
        times = [0.0, *(seconds for seconds, _ in said), ended]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        places = [number for number, (_, line) in enumerate(said) if line.startswith("[")]
        first, last = places[0], places[-1] + 1
        return cls(tuple(gaps[:first]), tuple(gaps[first:last]), tuple(gaps[last:]))

    def left(self, jobs: int) -> tuple[float, ...]:
        """The silences of a run that has so many jobs left."""
        if jobs <= 0:  # nothing is announced; the first line is on the report
            return (self.head[0] + self.tail[0], *self.tail[1:])
        others = self.jobs[len(self.jobs) - jobs + 1 :]
        return (*self.head, self.jobs[0], *others, *self.tail)


def moment(gaps: Sequence[float], share: float) -> tuple[int, float]:
    """The lines before a moment at a share of the whole time, and the seconds since the last."""
    seconds = share * sum(gaps)
    for lines, gap in enumerate(gaps):
        if seconds < gap:
            return lines, seconds
        seconds -= gap
    return len(gaps) - 1, gaps[-1]

"""`flatminima log`: what a job printed, and why it failed."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from flatminima.cli._studies import study_source
from flatminima.study.live import read_live, state
from flatminima.study.run import make_plan


def log(study: str, words: Sequence[str], *, out: Path) -> None:
    """`flatminima log`."""
    wanted = " ".join(words)
    source = study_source(study, out)
    plan = make_plan(source, out=out, create=False)
    jobs: dict[str, Mapping[str, str]] = {
        job.digest: {"kind": job.kind, "digest": job.digest, "label": job.label}
        for job in plan.jobs
    }
    if plan.study.name in plan.store.studies():  # its last run may have had other settings
        for job in plan.store.manifest(plan.study.name)["jobs"]:
            jobs.setdefault(job["digest"], job)
    job = _job(list(jobs.values()), wanted, plan.study.name)
    path = plan.store.log_path(job["kind"], job["digest"])
    if not path.exists():
        live = read_live(plan.store, plan.study.name)
        runs = state(live) == "running" and any(j["job"] == path.stem for j in live["running"])
        if runs:
            why = "it runs now, and its log is written when it ends"
        elif plan.store.any_record(path.stem) is not None:
            why = "its results came without one"
        else:
            why = "it has not run here yet"
        raise ValueError(f"expected a log of {job['label']} in {path.parent}, got none: {why}")
    print(path.read_text(encoding="utf-8", errors="replace"), end="")


def _job(jobs: Sequence[Mapping[str, str]], wanted: str, study: str) -> Mapping[str, str]:
    """The one job that is called so, or whose name or label begins so."""

    def names(job: Mapping[str, str]) -> tuple[str, str, str]:
        return job["label"], f"{job['kind']}-{job['digest']}", job["digest"]

    exact = [job for job in jobs if wanted in (job["label"], f"{job['kind']}-{job['digest'][:20]}")]
    found = exact or [job for job in jobs if any(name.startswith(wanted) for name in names(job))]
    if len(found) == 1:
        return found[0]
    if not found:
        near = get_close_matches(wanted, [job["label"] for job in jobs], n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"expected the label or name of a job of {study}, got {wanted!r}"
            + (hint or "; `flatminima status --json` lists those that run and failed")
        )
    labels = [job["label"] for job in found]
    if len(set(labels)) < len(labels):
        labels = [f"{job['kind']}-{job['digest'][:20]}" for job in found]
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    raise ValueError(
        f"expected one job of {study}, got {wanted!r}, with which {len(found)} begin:"
        f" {', '.join(labels[:4])}{more}; name one"
    )

"""Where the numbers come from: versions, hardware, date, commit, seconds, and all settings."""

import html
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flatminima.report.contents import StudyContents

_UNKNOWN = "not recorded"


def facts(study: StudyContents) -> list[str]:
    """A few words for the top of the page."""
    networks = study.section("training").get("networks")
    found = []
    if networks is not None:
        found.append(f"{networks} networks a group")
    dates = [day[:10] for day in _all(study, "started")]
    if dates:
        found.append(max(dates))
    if study.missing:
        found.append(f"unfinished: {study.missing} results are missing")
    return found


def provenance_section(study: StudyContents) -> str:
    """HTML: the environment of the runs, and what each kind of job took."""
    if not study.runs:
        return '<p class="note">No job of this study has finished yet.</p>'
    started = _all(study, "started")
    accelerators = ", ".join(_all(study, "accelerator"))
    rows = [
        ("Computed", _span(started)),
        ("Time in jobs", _duration(sum(_seconds(run) for run in study.runs))),
        ("Processor", ", ".join(_all(study, "cpu")) or _UNKNOWN),
        *([("Accelerator", accelerators)] if accelerators else []),
        ("Threads per job", ", ".join(_all(study, "threads")) or _UNKNOWN),
        ("Commit", ", ".join(_commits(study)) or _UNKNOWN),
        ("Versions", _versions(study) or _UNKNOWN),
    ]
    about = "".join(
        f'<tr><th scope="row">{name}</th><td>{html.escape(text)}</td></tr>' for name, text in rows
    )
    count: Counter[str] = Counter(str(run["kind"]) for run in study.runs)
    kinds = "".join(
        f'<tr><th scope="row">{html.escape(kind)}</th><td>{number}</td>'
        f"<td>{_duration(sum(_seconds(r) for r in study.runs if r['kind'] == kind))}</td></tr>"
        for kind, number in count.items()
    )
    return (
        f'<div class="scroll"><table class="plain wrap"><tbody>{about}</tbody></table></div>'
        '<div class="scroll" role="region" tabindex="0" aria-label="Jobs">'
        '<table class="plain"><thead><tr><th scope="col">kind of job</th><th scope="col">jobs</th>'
        f'<th scope="col">time</th></tr></thead><tbody>{kinds}</tbody></table></div>'
        '<p class="caption">Times are sums over the jobs that this study uses, wherever and '
        "whenever they ran.</p>"
    )


def settings_section(study: StudyContents) -> str:
    """HTML: every setting of the study file, with `auto` resolved."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(key)}</th><td>{html.escape(value)}</td></tr>'
        for key, value in _flat(study.settings)
    )
    return (
        "<details><summary>Settings of the study</summary>"
        '<div class="scroll" role="region" tabindex="0" aria-label="Settings">'
        f'<table class="plain"><tbody>{rows}</tbody></table></div></details>'
    )


def _all(study: StudyContents, key: str) -> list[str]:
    """The different values of one provenance entry, in order."""
    values = {run.get("provenance", {}).get(key) for run in study.runs} - {None, ""}
    return sorted(map(str, values))


def _seconds(run: Mapping[str, Any]) -> float:
    return float(run.get("provenance", {}).get("seconds", 0.0))


def _span(started: Sequence[str]) -> str:
    """First and last day."""
    if not started:
        return _UNKNOWN
    first, last = started[0][:10], started[-1][:10]
    return first if first == last else f"{first} to {last}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _commits(study: StudyContents) -> list[str]:
    found = set()
    for run in study.runs:
        provenance = run.get("provenance", {})
        if provenance.get("commit"):
            changed = " with uncommitted changes" if provenance.get("dirty") else ""
            found.add(f"{str(provenance['commit'])[:12]}{changed}")
    return sorted(found)


def _versions(study: StudyContents) -> str:
    """Each package with every version that was used."""
    found: dict[str, set[str]] = {}
    for run in study.runs:
        for package, version in run.get("provenance", {}).get("versions", {}).items():
            found.setdefault(str(package), set()).add(str(version))
    return ", ".join(f"{name} {' / '.join(sorted(found[name]))}" for name in sorted(found))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted keys and text."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value, start=1):
            yield from _flat(item, f"{path}[{number}]")
    elif value is not None:
        yield path, str(value)

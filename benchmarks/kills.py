"""Does a killed study lose or change anything? Studies killed at random moments, and resumed.

A small study runs through the command line and is killed several times: the driver alone, its whole
process group, one worker, or the driver right before one of the changes that it makes to the store.
A run that loses a worker goes on by itself, to its end or until its driver is killed later.
Run again until it finishes, its store must be, file by file, that of a serial run that was never
disturbed. How that is done is in `tests/crash/kills.py`, whose tests do a few of them.

    python benchmarks/kills.py --kills 100 --out results/crash-safety

With `--power` the store lies on a disk whose power is cut instead, so that what the disk was not
told to keep is gone (as root only; `power.json`).

It writes `kills.json`, after every study; stopped itself and started again, it goes on where it
was. It exits with 1 if anything was lost, changed or left over. Linux only.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from crash.kills import killed_study, undisturbed
from crash.power import Disk
from crash.study import STUDY
from flatminima.study.provenance import provenance


def so_far(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What was found earlier, or the beginning of it.

    Raises:
        ValueError: It was found in another way.
    """
    if not path.exists():
        return {**about, "environment": provenance(), "studies": []}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    now = {**about, "commit": provenance()["commit"]}
    then = {**{name: found.get(name) for name in about}, "commit": found["environment"]["commit"]}
    other = [name for name in now if now[name] != then[name]]
    if other:
        raise ValueError(
            f"expected {path} to come from this command and code, got another"
            f" {', '.join(other)}; delete it, or name another folder with --out"
        )
    return found


def write(path: Path, result: dict[str, Any]) -> None:
    """Replace the file in one step, with a summary of all kills."""
    kills = [kill for study in result["studies"] for kill in study["kills"]]
    faults = sum(bool(kill["faults"]) for kill in kills)
    result["summary"] = {
        "kills": len(kills),
        "studies": len(result["studies"]),
        "kills_with_faults": faults,
        "studies_with_faults": sum(bool(study["faults"]) for study in result["studies"]),
        "by_executor": dict(Counter(kill["executor"] for kill in kills)),
        "by_what_was_killed": dict(Counter(kill["killed"] for kill in kills)),
        "by_what_was_going_on": dict(Counter(kill["doing"].partition(" ")[0] for kill in kills)),
    }
    result["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def kill(options: argparse.Namespace, folder: Path, disk: Disk | None) -> int:
    """Do what is left; returns how many studies have faults."""
    path = options.out / ("power.json" if disk else "kills.json")
    print(f"seed {options.seed}; first an undisturbed run with each executor", flush=True)
    reference = undisturbed(folder, options.executors, options.workers)
    about = {
        "seed": options.seed,
        "executors": options.executors,
        "workers": options.workers,
        "signal": options.signal,
        **({"power": True} if disk else {}),
        "most_kills_of_a_study": options.most,
        "study": STUDY,
        "files": len(reference.content),
        "digest_of_the_undisturbed": reference.digest,
    }
    result = so_far(path, about)

    def done() -> int:
        return sum(len(study["kills"]) for study in result["studies"])

    if done():
        print(f"{done()} kills are in {path}", flush=True)
    while done() < options.kills:
        number = len(result["studies"])
        study = killed_study(
            reference,
            folder,
            number=number,
            seed=options.seed,
            executor=options.executors[number % len(options.executors)],
            workers=options.workers,
            kills=min(options.most, options.kills - done()),
            number_of_signal=signal.Signals[f"SIG{options.signal}"],
            disk=disk,
            first=done() + 1,
            say=lambda line: print(line, flush=True),
        )
        result["studies"].append(study)
        write(path, result)
    summary = result.get("summary", {})
    print(json.dumps(summary, indent=1))
    return int(summary.get("studies_with_faults", 0))


def main(words: list[str] | None = None) -> int:
    """Kill, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="draws moments and who is killed")
    parser.add_argument("--executors", nargs="+", default=["serial", "processes"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--most", type=int, default=4, help="kills of one study")
    parser.add_argument("--signal", choices=["KILL", "TERM", "INT"], default="KILL")
    parser.add_argument("--power", action="store_true", help="cut the power of the store's disk")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="flatminima-kills-"))
    try:
        with contextlib.ExitStack() as stack:
            disk = Disk(folder / "disk") if options.power else None
            if disk:
                stack.enter_context(disk.attached())
            faults = kill(options, folder, disk)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        print("stopped; finished studies are kept, run the same command again", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        print(error, file=sys.stderr)
        return 2
    if faults:
        print(f"stores with faults are kept in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

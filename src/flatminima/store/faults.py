"""What is wrong with the files of a store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flatminima.store.artifact import StoreError, sha256
from flatminima.store.files import read_json
from flatminima.store.finished import DISCARDED, SHORT


@dataclass(frozen=True)
class Fault:
    """Something below `jobs` that is not as it was written.

    Attributes:
        job: The name of the job's folder.
        kind: "record" where nothing can be believed of the job, "payload" where a file of it is
            missing or altered, "stranger" where a file is none of it.
        what: What is the matter, in words.
        file: The file in the job's folder, of a payload or a stranger.
    """

    job: str
    kind: Literal["record", "payload", "stranger"]
    what: str
    file: str = ""

    def __str__(self) -> str:
        return f"jobs/{self.job}{'/' if self.file else ''}{self.file}: {self.what}"


def inspect(jobs: Path) -> tuple[int, list[Fault]]:
    """Compare all files of the jobs in a folder with what is on record of them.

    Returns:
        The number of files that were compared, and whatever is wrong.
    """
    count, faults = 0, []
    for folder in sorted(jobs.glob("*")):
        discarded = (folder / DISCARDED).exists() and not (folder / "payload").exists()
        name = DISCARDED if discarded else "run.json"
        try:
            record = read_json(folder / name)
            own_name = f"{record['kind']}-{record['digest'][:SHORT]}"
            expected = {} if discarded else dict(record["payload"])
        except (StoreError, OSError, KeyError, TypeError, ValueError):
            faults.append(Fault(folder.name, "record", f"no readable {name}"))
            continue
        if folder.name != own_name:
            faults.append(Fault(folder.name, "record", "holds the record of another job"))
        payload = folder / "payload"
        found = {
            path.relative_to(payload).as_posix(): path
            for path in payload.rglob("*")
            if path.is_file()
        }
        for file, checksum in expected.items():
            count += 1
            path = found.pop(file, None)
            if path is None:
                faults.append(Fault(folder.name, "payload", "missing", f"payload/{file}"))
            elif sha256(path.read_bytes()) != checksum:
                faults.append(Fault(folder.name, "payload", "altered", f"payload/{file}"))
        faults += [
            Fault(folder.name, "stranger", "not in run.json", f"payload/{file}")
            for file in sorted(found)
        ]
    return count, faults

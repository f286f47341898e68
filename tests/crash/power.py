"""A disk whose power can be cut.

It is an ext4 file system in a file. Told to stop at once, without writing anything more, which is
how the tests of Linux file systems cut the power, it has lost what it was not told to keep. What
has reached it by then depends on its own schedule, which is to write names once a second here, and
contents much later unless somebody asks: a file may be there by name and be empty. Linux only, and
only as root.
"""

import contextlib
import os
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

# FS_IOC_SHUTDOWN of linux/fs.h, and that nothing is to be flushed before.
_SHUTDOWN, _WITHOUT_FLUSH = 0x8004587D, 2
_MEBIBYTES = 96
# Names reach the disk after a second, not five: more is half there when the power goes.
_OPTIONS = "loop,commit=1"


class Disk:
    """A file system in a file, mounted where nobody but `inside` sees it.

    A copy of the mount in somebody else's namespace would keep it from being unmounted.

    Attributes:
        path: Where it is mounted, there.
    """

    def __init__(self, folder: Path) -> None:
        self._file, self.path = folder / "disk", folder / "mounted"
        self._inside: list[str] = []
        self._seen = Path()

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Make it, empty, and have it mounted while this is entered, or this process lives.

        Raises:
            RuntimeError: This system does not let us.
        """
        self.path.mkdir(parents=True)
        with self._file.open("wb") as file:
            file.truncate(_MEBIBYTES << 20)
        _call("mkfs.ext4", "-q", str(self._file))
        # It says a line once it is there, and ends, and the mounts with it, when we do.
        words = ["unshare", "-m", "sh", "-c", "echo; exec cat"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            if not holder.stdout.readline():
                raise RuntimeError("unshare does not let us have mounts of our own")
            self._inside = ["nsenter", "-t", str(holder.pid), "-m", "--"]
            self._seen = Path(f"/proc/{holder.pid}/root", *self.path.parts[1:])
            self._mount()
            yield
            holder.communicate()

    def inside(self, words: Sequence[str]) -> list[str]:
        """A command that sees it."""
        return [*self._inside, *words]

    def seen(self, path: Path) -> Path:
        """A path on it as others can open it."""
        return self._seen / path.relative_to(self.path)

    def cut(self) -> None:
        """Stop it at once: all that goes on there fails, and nothing more is written."""
        import fcntl  # not on Windows, where this file is imported all the same

        place = os.open(self._seen, os.O_RDONLY)
        try:
            fcntl.ioctl(place, _SHUTDOWN, struct.pack("I", _WITHOUT_FLUSH))
        finally:
            os.close(place)

    def restart(self) -> None:
        """Mount what is on the disk after `cut`; nobody may be using it any more."""
        _call(*self.inside(["umount", str(self.path)]))
        self._mount()

    def _mount(self) -> None:
        _call(*self.inside(["mount", "-o", _OPTIONS, str(self._file), str(self.path)]))


def _call(*words: str) -> None:
    """Run a command of the system's."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(f"cannot run {words[0]}: {error.strerror}") from None
    if done.returncode:
        raise RuntimeError(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()}")

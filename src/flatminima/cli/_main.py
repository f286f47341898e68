"""Commands, and what becomes of their errors."""

import errno
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flatminima import __version__
from flatminima.cli import _care, _log, _networks, _own, _report, _run, _status
from flatminima.cli._text import size

app = typer.Typer(
    name="flatminima",
    help="Measure how flat the minima of neural networks are, and draw the loss between them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# What typer makes of a keyboard interrupt, which it does not let through.
_INTERRUPTED = 130

StudyFile = Annotated[str, typer.Argument(metavar="STUDY.toml", help="The study's settings.")]
StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="The study's file, or its name in the store.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder in which results are stored.")]


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; an error is one line unless `--debug` is given."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    arguments = _own.several(arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: keep what is done
    try:
        code = app(args=arguments, prog_name="flatminima", standalone_mode=False)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exception(error)
        code, message = _explain(error)
        print(f"flatminima: {message}", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and line for an error."""
    from flatminima.study.execute import StudyFailed
    from flatminima.study.executors import ClusterGone

    text = " ".join(str(error).split())
    # Typer brings its own copy of click in some versions: its errors are known by their name.
    if "ClickException" in {kind.__name__ for kind in type(error).__mro__}:
        message = getattr(error, "format_message", lambda: text)()
        return 2, f"{' '.join(message.split())} (flatminima --help)"
    match error:
        case KeyboardInterrupt():
            return 1, "stopped; finished work is kept, run the same command again"
        case StudyFailed():
            return (2 if error.bad_input else 1), text
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return 2, (
                f"the disk is full{_at(error)}; finished work is kept: free some space and run the"
                " same command again"
            )
        case OSError():
            return 2, (
                f"expected files and folders that can be read and written, got"
                f" {error.strerror or text}{_at(error)}; name another, for instance with --out"
            )
        case ValueError():
            return 2, text
        case ClusterGone():
            return 1, text
        case RuntimeError() if type(error) is RuntimeError:
            return 1, text
        case _:
            return 1, f"{type(error).__name__}: {text} (--debug shows where)"


def _at(error: OSError) -> str:
    """The file that an error of the operating system is about."""
    return f" ({error.filename})" if error.filename else ""


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"flatminima {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure how flat the minima of neural networks are, and draw the loss between them."""


@app.command()
def run(
    study: StudyFile,
    out: Out = Path("runs"),
    executor: _networks.Executor = "processes",
    workers: _networks.Workers = None,
    address: _networks.Address = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads per job; part of the results' names.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="training, surfaces or radii: do this part and what it needs."),
    ] = None,
) -> None:
    """Train what is missing, measure what is missing, write the report."""
    _run.run(
        study,
        out=out,
        executor=executor,
        workers=workers,
        address=address,
        threads=threads,
        device=device,
        only=tuple(only or ()),
    )


@app.command()
def status(
    study: StudyName,
    out: Out = Path("runs"),
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on until the run ends; Ctrl-C does not disturb it.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, for other programs.")
    ] = False,
) -> None:
    """Say what of a study is done, runs now, failed or waits, and for how long."""
    _status.status(study, out=out, watch=watch, as_json=as_json)


@app.command()
def log(
    study: StudyName,
    job: Annotated[
        list[str],
        typer.Argument(metavar="JOB", help="A job's label or name, or how one of them begins."),
    ],
    out: Out = Path("runs"),
) -> None:
    """Show what a job of a study printed, and why it failed."""
    _log.log(study, job, out=out)


@app.command()
def report(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY", help="Study files or names, or folders of stores (results/x)."
        ),
    ],
    out: Out = Path("runs"),
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the report goes, by default into the store; needed for several stores.",
        ),
    ] = None,
) -> None:
    """Write the report of a study, or of several on one page, anew from what is stored."""
    _report.report(studies, out=out, to=to)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A store, for example results/x.")],
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute",
            help="Also recompute the losses at the minima and a twentieth of one surface.",
        ),
    ] = False,
    whole: Annotated[
        bool,
        typer.Option("--recompute-all", help="Recompute every point of every surface, too."),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Take out damaged jobs; the next run computes them anew."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Draws the points that are recomputed.")] = 0,
) -> None:
    """Check every stored file against its recorded digest."""
    _care.verify(folder, recompute=recompute, whole=whole, repair=repair, seed=seed)


@app.command()
def clean(
    studies: Annotated[
        list[str],
        typer.Argument(metavar="STUDY", help="The studies to keep: their files, or their names."),
    ],
    out: Out = Path("runs"),
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove it; without this it is only told.")
    ] = False,
    own: Annotated[
        bool, typer.Option("--own", help="Also what was measured of own networks.")
    ] = False,
) -> None:
    """Tell what in a store belongs to none of these studies, or remove it."""
    _care.clean(studies, out=out, delete=delete, own=own)


@app.command()
def publish(
    study: StudyFile,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the copy goes.")],
    out: Out = Path("runs"),
    weights: Annotated[
        bool, typer.Option(help="Copy the networks' weights, or only their digests.")
    ] = True,
) -> None:
    """Copy a finished study's results and report into a small store of their own."""
    _care.publish(study, folder, out=out, weights=weights)


for _command in (_networks.surface, _networks.line, _networks.radius, _networks.check):
    app.command()(_networks.on_networks(_command))


@app.command()
def export(
    source: Annotated[
        Path, typer.Argument(metavar="SURFACE", help="A surface's file or folder, or a store.")
    ],
    to: Annotated[
        Path, typer.Argument(metavar="FILE", help="By suffix: csv nc zarr vts vtu stl glb.")
    ],
    name: Annotated[str | None, typer.Option(help="Of which study or networks in a store.")] = None,
    clip: Annotated[
        float | None, typer.Option(help="Height of the relief, for stl and glb.")
    ] = None,
) -> None:
    """Write a surface for other programs; reads theirs too (.h5, plane.npz)."""
    _own.export(source, to, name=name, clip=clip)


class _ListsByDefault(TyperGroup):
    """Lists where no other command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["list"])


_datasets = typer.Typer(
    cls=_ListsByDefault, help="List the built-in data sets, or carry one to another machine."
)
app.add_typer(_datasets, name="datasets")


@_datasets.command("list")
def list_datasets() -> None:
    """List the built-in data sets: what is cached, from where, and whether it is intact."""
    from flatminima.data.sources import cached_files

    for record in cached_files():
        place = str(record.path) if record.path is not None else "nothing to fetch"
        length = size(record.size) if record.size else ""
        print(
            f"{record.dataset:14} {record.state:9} {length:>8}  {record.file:30} "
            f"{record.origin or '-'}  {place}"
        )


@_datasets.command()
def pack(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A data set, for example cifar10.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The pieces go to DIR/NAME.")],
) -> None:
    """Write a data set as pieces below 48 MiB, for a machine without a network."""
    from flatminima.data import carry

    pieces = carry.pack(name, folder)
    total = size(sum(piece.stat().st_size for piece in pieces))
    print(f"{name}: {len(pieces)} pieces, {total}, and {carry.SUMS} are in {pieces[0].parent}")


@_datasets.command()
def unpack(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder given to pack.")],
) -> None:
    """Put carried pieces into the cache, as far as they have come, each only if it is official."""
    from flatminima.data import carry

    arrivals = carry.unpack(folder)
    for came in arrivals:
        print(
            f"{came.dataset}: {len(came.in_place)} of {len(came.in_place) + len(came.missing)} "
            f"files are in place in {came.folder}: {', '.join(came.in_place) or 'none'}"
        )
        if came.missing:
            print(f"{came.dataset}: still missing: {', '.join(came.missing)}")
    refused = [line for came in arrivals for line in came.refused]
    if refused:
        raise ValueError("; ".join(refused))

"""The command line: each verb parses its options and makes one call. `tlray` and `jobs/` both call `main`.

Exit codes: 0 done; 2 a mistake of the user, one line on stderr; 1 a fault of tlray or the machine;
130 interrupted. Nothing slow is imported here, so that `tlray --help` answers at once.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from tlray import __version__
from tlray.cli import cache, fault, make, models, vectors
from tlray.errors import TlrayError

INTERRUPTED = 130

app = typer.Typer(
    name="tlray",
    help="Pictures in, the best fine-tuned model behind an endpoint out: transfer learning on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tlray {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Ray's own log, and tracebacks. Also after the verb.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = {"verbose": verbose}


make.add(app)
models.add(app)
vectors.add(app)
cache.add(app)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb; returns after success and raises SystemExit(code) otherwise."""
    code = run(list(sys.argv[1:] if argv is None else argv))
    if code:
        raise SystemExit(code)


def run(argv: list[str]) -> int:
    """Run a verb and return its exit code."""
    argv, verbose = _hoist(argv)
    before = signal.getsignal(signal.SIGTERM)
    try:
        # `ray job stop`, systemd and Kubernetes send SIGTERM: clean up and end as after Ctrl-C.
        signal.signal(signal.SIGTERM, _interrupt)
    except ValueError:
        before = None  # not the main thread
    try:
        done = typer.main.get_command(app).main(argv, prog_name="tlray", standalone_mode=False)
        if done == INTERRUPTED:  # typer catches Ctrl-C and reports it only by this code
            return _fail(None, INTERRUPTED, "interrupted", verbose)
        return done if isinstance(done, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _fail(None, INTERRUPTED, "interrupted", verbose)
    except SystemExit:  # how Ray Train's own handler of Ctrl-C ends a run
        return _fail(None, INTERRUPTED, "interrupted", verbose)
    except BrokenPipeError:
        return 1  # the reader of stdout has ended
    except Exception as error:
        if isinstance(error, _USAGE):
            return _usage(error)
        if isinstance(first := fault.origin(error), TlrayError):
            return _fail(error, 2, str(first), verbose)
        return _fail(error, 1, fault.line(error, argv), verbose)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


# New versions of typer contain a copy of click, older ones use click itself: this finds the class in both.
_USAGE = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _usage(error: Any) -> int:
    """A mistake in the command line itself."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return 2
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "tlray"
    said = " ".join(str(error.format_message()).split()).rstrip(".")
    print(f"tlray: {said}; see `{path} --help`", file=sys.stderr)
    return 2


def _fail(error: BaseException | None, code: int, said: str, verbose: bool) -> int:
    sys.stdout.flush()
    if error is not None and verbose:
        traceback.print_exception(error)
    print(f"tlray: {' '.join(said.split())}", file=sys.stderr)
    return code


def _hoist(argv: list[str]) -> tuple[list[str], bool]:
    """Accept -v at any place."""
    end = argv.index("--") if "--" in argv else len(argv)
    flags = ("-v", "--verbose")
    rest = [item for item in argv[:end] if item not in flags] + argv[end:]
    verbose = len(rest) < len(argv)
    return (["--verbose", *rest] if verbose else rest), verbose


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt

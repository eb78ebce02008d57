"""An unexpected error: one line on the screen, the whole traceback in a file."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from tlray import __version__
from tlray.errors import redact

_WHOLE = "a fault of tlray's or of the machine; the whole traceback is"


def origin(error: BaseException) -> BaseException:
    """The original exception of a task or an actor, which Ray wraps in its own."""
    while type(error).__module__.split(".")[0] == "ray":
        # Ray Data raises its own exception from that of the task, whose `cause` is the original one.
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error


def line(error: BaseException, argv: Sequence[str]) -> str:
    """One line on what happened and where; writes the traceback to a file, which the line names."""
    first = origin(error)
    said = [text for text in str(first).strip().splitlines() if text.strip()] or [""]
    # For an exception that Ray could not unpickle, the text is its traceback; the last line is the message.
    what = said[-1 if type(first).__module__.split(".")[0] == "ray" else 0].strip()[:300]
    notes = "".join(f" ({note})" for note in getattr(first, "__notes__", []))
    begun = f"unexpected {type(first).__name__}{': ' if what else ''}{redact(what)}{redact(notes)}"
    whole = "".join(traceback.format_exception(error))
    try:
        file, path = tempfile.mkstemp(prefix="tlray-error-", suffix=".txt")
        with open(file, "w", encoding="utf-8", errors="backslashreplace") as out:
            out.write(redact(f"tlray {__version__}, Python {sys.version.split()[0]}, in {os.getcwd()}\n"))
            out.write(redact(f"tlray {' '.join(argv)}\n\n{whole}"))
    except OSError as unwritten:
        sys.stderr.write(redact(whole))
        return f"{begun}; {_WHOLE} above ({unwritten.strerror})"
    return f"{begun}; {_WHOLE} in {path}"

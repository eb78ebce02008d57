"""The report of a run: one HTML file without any other file beside it.

`write` reads the files of the run's folder (each of them optional), has the task make figures of the
evaluation, reads the few pictures that these show, and renders ``report.html.j2``.
The page makes no request of any kind, and a policy in its head forbids requests.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import PIL.Image
import yaml
from markupsafe import Markup

from tlray import storage
from tlray.errors import RunError, TlrayError, redact, redact_tree, spelling_hint
from tlray.figures import charts
from tlray.report import formatting, view
from tlray.report.run_files import ReportedGoal, RunFiles
from tlray.training import rundir

if TYPE_CHECKING:
    from tlray.tasks.base import Task

logger = logging.getLogger(__name__)
PICTURE_PX = 288  # longer side of a picture's file; the page shows it at half that size


def write(run_uri: str) -> str:
    """Write RUN/report.html from what lies in the run's folder and return its URI.

    Whatever is missing or unreadable is left out and named at the page's end. Raises RunError where
    there is no run at all, StorageError where the page cannot be written.
    """
    notes: list[str] = []
    run = _open(run_uri, notes)
    shown = _evaluated(run, notes)
    page = _environment().get_template("report.html.j2").render(
        title=run.name,
        head=view.headline(run),
        curves=view.curves(run),
        trials=view.trials(run),
        sections=[*shown, *view.baseline(run), *view.cost(run), *view.evidence(run)],
        pictures=_pictures(run, shown, notes),
        paths=[str(row.get("path") or row.get("id") or "") for row in run.evaluation.get("rows") or []],
        data=view.data(run.preflight),
        time=view.time(run),
        changed=view.changed(run.config),
        config=yaml.safe_dump(redact_tree(run.config), sort_keys=False, allow_unicode=True)
        if run.config
        else "",
        facts=view.facts(run),
        notes=notes,
        **_page(),
    )
    target = storage.join(run_uri, rundir.REPORT)
    storage.write_bytes(target, page.encode())
    return target


def summary(run_uri: str) -> str:
    """Headline and table of trials of a run as a piece of HTML, for notebooks. Raises RunError as `write`."""
    run = _open(run_uri, [])
    return _environment().get_template("summary.html.j2").render(
        title=run.name, head=view.headline(run), trials=view.trials(run)
    )


def _open(run_uri: str, notes: list[str]) -> RunFiles:
    """The files of a run. Raises RunError where there are none; what cannot be read is noted."""
    storage.absolute(run_uri)  # raises for what is no URI
    run = RunFiles(
        uri=run_uri,
        config=_read(storage.join(run_uri, rundir.CONFIG), notes),
        metrics=_read(storage.join(run_uri, rundir.METRICS), notes),
        trials=_read(storage.join(run_uri, rundir.TRIALS), notes),
        evaluation=_read(storage.join(run_uri, rundir.EVALUATION), notes),
        manifest=_read(storage.join(run_uri, rundir.BEST_MANIFEST), notes),
    )
    if not (run.config or run.metrics or run.trials or run.evaluation):
        seen = f" ({redact('; '.join(notes))})" if notes else ""
        raise RunError(
            f"{run_uri}: no run lies here{seen}; accepted: a run's folder, with config.json in it"
            f"{spelling_hint(run_uri) if not storage.exists(run_uri) else ''}"
        )
    for note in notes:
        logger.warning("report without %s", redact(note))
    if run.data_uri:
        run.preflight = _read(storage.join(run.data_uri, "preflight.json"), notes)
    run.goal = _goal(run, notes)
    return run


def _read(uri: str, notes: list[str]) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file. A file that cannot be read is noted."""
    try:
        if not storage.exists(uri):
            return {}
        content = storage.read_json(uri)
    except (TlrayError, ValueError) as error:
        reason = str(error)
        notes.append(reason if reason.startswith(uri) else f"{uri}: {reason}")
        return {}
    if not isinstance(content, dict):
        notes.append(f"{uri}: holds no JSON object")
        return {}
    return content


def _goal(run: RunFiles, notes: list[str]) -> ReportedGoal | None:
    """The metric that decides: the search's, otherwise the task's."""
    if goal := run.trials.get("goal"):
        return ReportedGoal(str(goal["name"]), str(goal.get("direction", "max")))
    task = _task(run, notes)
    return None if task is None else ReportedGoal(str(task.goal.name), str(task.goal.direction))


def _task(run: RunFiles, notes: list[str]) -> Task | None:
    """The run's task; None where it is missing, or unknown to this version."""
    from tlray import tasks

    if not run.task_settings:
        return None
    try:
        return tasks.load(tasks.kept(run.task_settings))
    except TlrayError as error:
        if str(error) not in notes:
            notes.append(str(error))
        return None


def _evaluated(run: RunFiles, notes: list[str]) -> Sequence[charts.Section]:
    """The figures that the task makes of the evaluation."""
    task = _task(run, notes) if run.evaluation.get("rows") else None
    return [] if task is None else task.figures(run.evaluation)


def _pictures(run: RunFiles, sections: Sequence[charts.Section], notes: list[str]) -> dict[int, str]:
    """``data:`` URIs of the pictures that the sections want, by position in the evaluation's rows."""
    wanted = sorted({row for section in sections for shot in section.shots for row in shot.rows})
    task = _task(run, notes)
    if not wanted or not run.data_uri or task is None:
        return {}
    from tlray.data.dataset import Dataset
    from tlray.data.schema import ID, IMAGE

    split, rows = run.evaluation["split"], run.evaluation["rows"]
    pictures: dict[int, str] = {}
    try:
        dataset = Dataset.open(run.data_uri)
        place = {row: row for row in wanted}
        if ID in dataset.schema.names and all("id" in rows[row] for row in wanted):
            ids = {name: i for i, name in enumerate(dataset.read(split, [ID])[ID].to_pylist())}
            place = {row: ids[rows[row]["id"]] for row in wanted if rows[row]["id"] in ids}
        else:
            place = {row: at for row, at in place.items() if at < dataset.num_rows(split)}
        table = dataset.rows(split, list(place.values()), [IMAGE])
        for row, image in zip(place, table[IMAGE].to_pylist(), strict=True):
            if uri := _thumbnail(
                image["bytes"], partial(task.draw, record=rows[row], labels=run.evaluation["labels"]), notes
            ):
                pictures[row] = uri
    except TlrayError as error:
        notes.append(f"pictures: {error}")
        return pictures
    if missing := len(wanted) - len(place):
        notes.append(f"pictures: {missing} of {len(wanted)} are no longer in {run.data_uri} ({split})")
    return pictures


def _thumbnail(data: bytes, draw: Callable[[PIL.Image.Image], PIL.Image.Image], notes: list[str]) -> str:
    """A picture of any format, upright and drawn upon, as a small JPEG in a ``data:`` URI; "" where it
    cannot be decoded."""
    from tlray.data import image

    try:
        return thumbnail(draw(image.decode(data)))
    except TlrayError as error:
        notes.append(f"pictures: {error}")
        return ""


def thumbnail(picture: PIL.Image.Image) -> str:
    """An RGB picture as a small JPEG in a ``data:`` URI."""
    picture = picture.copy()
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80, optimize=True)  # new bytes: no EXIF goes along
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _environment() -> jinja2.Environment:
    """Templates in which every value is escaped and redacted, plots excepted (our own SVG)."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda svg: Markup(
        svg.decode().replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)
    )
    environment.filters["slug"] = formatting.slug
    environment.filters["cell"] = formatting.cell
    environment.filters["key"] = formatting.sort_key
    environment.filters["duration"] = charts.duration
    return environment


def _page() -> dict[str, Any]:
    """Script and style of the page, and the hash by which its policy allows that script."""
    here = Path(__file__).parent
    script = (here / "report.js").read_text(encoding="utf-8")
    style = (here / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"script": Markup(script), "style": Markup(style), "script_hash": digest}


def _shown(value: Any) -> Any:
    if value is None:
        return "–"  # noqa: RUF001
    return value if isinstance(value, Markup) or not isinstance(value, str) else redact(value)

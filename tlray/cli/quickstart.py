"""All steps once, on a drawn sample or on the user's own pictures: `tlray quickstart`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from tlray import api, runtime, storage
from tlray.config import Config, parse
from tlray.data.schema import IMAGE, LABEL
from tlray.errors import DataError, RunError, spelling_hint
from tlray.observer.display import Display, duration
from tlray.storage import targets

STEPS = ("Sample", "Ingest", "Search", "Evaluate", "Promote", "Serve")
NAME = "quickstart"
MAX_SIDE = 256  # px; decoding is faster if pictures are not much larger than the model's input
REQUEST_TIMEOUT_S = 60.0


def recipe(work: str, data: str, name: str) -> Config:
    """A search small enough for two cores: three freeze depths x two learning rates."""
    return parse(
        {
            "name": name,
            "runs": storage.join(work, "runs"),
            "models": storage.join(work, "models"),
            "data": {"uri": data},
            "input": {"size": 64},  # what the built-in backbone was pretrained at
            "model": {"backbone": "resnet10t-nano", "weights": "builtin"},
            "train": {"epochs": 4, "batch_size": 64},
            "search": {
                "sampler": "grid",
                "space": {
                    "model.freeze": {"choice": ["all", 0.6, 0]},
                    "optim.lr": {"choice": [0.006, 0.003]},
                },
                "grace_epochs": 2,
                "extend": False,  # as many trials as were announced
            },
            "serve": {"port": 0},
        },
        "quickstart",
    )


def run(
    source: str | None,
    work: str,
    watch: Callable[[int], Any],
    say: Callable[[str], None],
    verbose: bool = False,
) -> dict[str, Any]:
    """Ingest, search, evaluate, promote, serve and ask once; everything is shut down at the end.

    ``source`` None: draw a sample. ``watch(num_steps)`` makes the `Display`, ``say`` prints a line of the
    result. Everything is written below ``work``. Each call makes a new run and a new version of the model.
    """
    began = time.monotonic()
    if source is not None and not storage.exists(source):
        raise DataError(
            f"{source}: not found; accepted: a folder or table of labelled pictures{spelling_hint(source)}"
        )
    targets.check_folder(work)
    work = storage.absolute(work)
    config = recipe(work, storage.join(work, "data"), time.strftime("run-%Y%m%d-%H%M%S"))
    with watch(len(STEPS) - (source is not None)) as show, contextlib.ExitStack() as session:
        result = _steps(source, work, config, show, verbose, session)
    result["seconds"] = round(time.monotonic() - began, 1)
    _say_result(result, config, say)
    return result


def _steps(
    source: str | None,
    work: str,
    config: Config,
    show: Display,
    verbose: bool,
    session: contextlib.ExitStack,
) -> dict[str, Any]:
    runtime.prepare(verbose)
    if source is None:
        source = storage.join(work, "sample")
        with show.step("Sample: draw labelled pictures"):
            from tlray.data.synthetic import draw

            draw(source, progress=show.progress)
    # Ray starts when the checks of `ingest` have passed, once for all steps from here on.
    with show.step("Ingest: check the pictures, make a data set"):
        made = api.ingest(source, config.data.uri, show, verbose, session, max_side=MAX_SIDE)
    splits = ", ".join(f"{split} {rows}" for split, rows in made.splits.items())
    show.line(f"      {splits}; findings: {storage.join(config.data.uri, 'preflight.txt')}")
    with show.step("Search: freeze depth x learning rate"):
        search = api.tune(config, show, verbose)
    with show.step("Evaluate: the winner on pictures it has never seen"):
        split = next(s for s in ("test", "validation") if made.splits.get(s))
        scores = api.evaluate(search["bundle"], config.data.uri, split, show, verbose=verbose)
    with show.step("Promote: give it a name and a version"):
        version = api.promote(search["bundle"], NAME, config.models)["version"]
    with show.step("Serve: start the endpoint and ask it"):
        answer = _ask(config, split, show, verbose)
    return {
        "run": search["run"],
        "bundle": search["bundle"],
        "trials": search["trials"],
        "split": split,
        "metrics": scores["metrics"],
        "model": f"{NAME}@{version}",
        "models": config.models,
        "report": search["report"],
        **answer,
        "steps": dict(show.seconds),
    }


def _ask(config: Config, split: str, show: Display, verbose: bool) -> dict[str, Any]:
    """Serve the model and send one picture of a split as a real client would."""
    import httpx

    from tlray.data.dataset import Dataset

    data = Dataset.open(config.data.uri)
    row = data.rows(split, [0], [IMAGE, LABEL]).to_pylist()[0]
    names = data.labels()
    file = storage.join(config.run_uri, "asked.jpg")
    storage.write_bytes(file, row[IMAGE]["bytes"])
    with api.serve([NAME], config.serve, show, config.models, verbose) as server:
        url = f"{server.url}/v1/models/{NAME}/predict"
        reply = httpx.post(
            url,
            content=storage.read_bytes(file),
            headers={"Content-Type": "application/octet-stream"},
            timeout=REQUEST_TIMEOUT_S,
            trust_env=False,
        )
    if reply.status_code != 200:
        raise RunError(f"{url}: answered {reply.status_code}: {reply.text[:200]}")
    return {"url": url, "asked": file, "truth": names[row[LABEL]], "answer": reply.json()}


def _say_result(result: dict[str, Any], config: Config, say: Callable[[str], None]) -> None:
    answer, models = result["answer"], result["models"]
    best = answer["predictions"][0]
    ranked = "  ".join(f"{item['label']} {item['probability']:.3f}" for item in best["labels"][:3])
    scores = "  ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items())
    say("")
    say(f"Asked     POST {result['url']}  with {result['asked']} ({result['truth']})")
    say(f"Answer    {ranked}  ({answer['timing']['total_ms']:.0f} ms, {answer['model']}@{answer['version']})")
    say(f"Model     {result['model']}: {result['split']} {scores}")
    say(f"Report    {result['report']}")
    say(f"Time      {duration(result['seconds'])}")
    say("")
    say("Next:")
    say(f"  tlray serve {NAME} --models {models}")
    say(f"  tlray predict {NAME} PICTURE.jpg --models {models}")
    say(f"  tlray evaluate {NAME} {config.data.uri} --models {models}")
    say("  tlray quickstart FOLDER        (your own pictures: FOLDER/CLASS/*.jpg)")

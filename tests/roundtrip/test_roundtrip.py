"""Random data sets in every layout, with many habits: each is read as it was meant, or refused in one line.
There must never be a data set that means something else, and never an unexpected error.

`make test` tries 30 sets of each layout, always the same; `make test-long` 300, others each time. With
TLRAY_ROUNDTRIP_SURVEY=1 a layout's sets are all tried before its first fault is shown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.roundtrip.layout import Layout
from tests.roundtrip.runner import Tally, map_here, trip
from tests.roundtrip.writers import LAYOUTS
from tlray.ingestion import ingest

LONG = "TLRAY_ROUNDTRIP_SETS" in os.environ
SETS = int(os.environ.get("TLRAY_ROUNDTRIP_SETS", "30"))
SURVEY = bool(os.environ.get("TLRAY_ROUNDTRIP_SURVEY"))
FEWEST_RIGHT = 0.4  # share of the sets of a layout that must be read, since some habits have to be refused
CHECKED = settings(
    max_examples=SETS,
    derandomize=not LONG,
    database=None,
    deadline=None,
    print_blob=LONG,
    phases=[Phase.generate] if SURVEY else [Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
BY_NAME = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)


@pytest.fixture(scope="module", autouse=True)
def here() -> Iterator[None]:
    """Both passes of ingest run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "_map", map_here)
        yield


@pytest.fixture(scope="module")
def tallies() -> Iterator[list[Tally]]:
    """One of each layout; at the end the table goes to $TLRAY_ROUNDTRIP_REPORT, as JSON."""
    all_tallies: list[Tally] = []
    yield all_tallies
    file = os.environ.get("TLRAY_ROUNDTRIP_REPORT")
    if file:
        Path(file).write_text(json.dumps([tally.to_dict() for tally in all_tallies], indent=1) + "\n")


@BY_NAME
def test_plain_sets_are_read(layout: Layout) -> None:
    @settings(CHECKED, max_examples=3, derandomize=True, phases=[Phase.generate])
    @given(layout.plain())
    def check(drawn: tuple) -> None:  # type: ignore[type-arg]
        outcome = trip(layout, *drawn)
        assert outcome.kind == "right", outcome.why

    check()


@BY_NAME
def test_what_is_written_is_read_or_refused(layout: Layout, tallies: list[Tally]) -> None:
    tally = Tally(layout.name)
    tallies.append(tally)

    @CHECKED
    @given(layout.sets())
    def check(drawn: tuple) -> None:  # type: ignore[type-arg]
        outcome = trip(layout, *drawn)
        tally.add(outcome)
        assert SURVEY or outcome.kind in ("right", "refused"), outcome.why

    check()
    faults = tally.wrong + tally.unexpected
    assert not faults, f"{len(faults)} of {tally.sets} sets, as\n{min(faults, key=len)}"
    assert tally.right >= FEWEST_RIGHT * tally.sets, tally.to_dict()


def test_every_layout_has_a_name_of_its_own() -> None:
    names = [layout.name for layout in LAYOUTS]
    assert len(set(names)) == len(names)

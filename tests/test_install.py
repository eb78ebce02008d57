"""What is installed: the lock holds every dependency, exactly and by hash, and names no place to get it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "cluster" / "requirements.lock").read_text()


def locked() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in re.findall(r"^[A-Za-z0-9].*?(?=\s*\\?$)", LOCK, re.M):
        made = Requirement(line)
        found.setdefault(canonicalize_name(made.name), []).append(made)
    return found


def test_the_lock_is_exact_hashed_and_without_addresses() -> None:
    entries = locked()
    assert len(entries) > 100
    for made in (one for many in entries.values() for one in many):
        assert re.fullmatch(r"==[^*,]+", str(made.specifier)), made
    for block in re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.M)[1:]:
        assert "--hash=sha256:" in block, block.splitlines()[0]
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links|@ ", LOCK)


def test_the_lock_satisfies_every_range() -> None:
    entries = locked()
    for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]:
        wanted = Requirement(text)
        found = entries[canonicalize_name(wanted.name)]
        for one in found:
            assert wanted.specifier.contains(str(one.specifier).removeprefix("==")), (text, str(one))


def test_every_dependency_says_why() -> None:
    said = (ROOT / "CONTRIBUTING.md").read_text()
    extras = [text for many in PROJECT["optional-dependencies"].values() for text in many]
    for text in [*PROJECT["dependencies"], *extras]:
        assert f"`{Requirement(text).name}`" in said, text

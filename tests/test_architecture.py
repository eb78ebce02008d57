"""The floor plan: who may import whom, and what stands in one place only. Reads the code, runs none of it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tlray"

# Imports point to an earlier line only. Moving a wall means changing these lines, in the same step.
FLOORS = [
    ["errors", "observer", "figures"],
    ["config", "storage"],
    ["data", "models", "runtime"],
    ["tasks"],
    ["bundle", "ingestion"],
    ["inference", "serving"],
    ["training"],
    ["report", "search"],
    ["api"],
    ["cli"],
]
LEVEL = {name: level for level, rooms in enumerate(FLOORS) for name in rooms}
MOST_ARROWS = 100  # of one room to another; a new one has to be worth raising this
# Forbidden although the order would allow it: serving sees the bundle and what lies below, never where
# models come from.
APART = {"serving": ("tlray.ingestion", "tlray.data.loader", "tlray.data.synthetic")}
# Rooms, and single modules of the others.
RAY = (
    "tlray.runtime", "tlray.data.loader", "tlray.data.ray_data", "tlray.ingestion.ingest",
    "tlray.inference.batch", "tlray.training.fit", "tlray.search", "tlray.serving", "tlray.cli.doctor",
)  # fmt: skip
PRINT = ("tlray.cli", "tlray.cli.output", "tlray.cli.quickstart")
# What makes a filesystem; the code of a format walks the one it was given.
FILESYSTEMS = {"S3FileSystem", "LocalFileSystem", "SubTreeFileSystem", "PyFileSystem", "FSSpecHandler"}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The module or folder directly below tlray/ that a file belongs to; "" for the package itself."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def dotted(path: Path) -> list[str]:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(tree: ast.AST, path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that a file imports, anywhere in it, and the lines."""
    package = dotted(path) if path.name == "__init__.py" else dotted(path)[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{prefix}.{alias.name}", node.lineno


def type_only(tree: ast.AST) -> set[int]:
    """Lines below ``if TYPE_CHECKING``."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def parsed() -> Iterator[tuple[Path, ast.Module]]:
    for path in files():
        yield path, ast.parse(path.read_text(encoding="utf-8"), str(path))


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def below(name: str, places: Iterable[str]) -> bool:
    """Whether a dotted name is one of the places, or lies in one."""
    return any(f"{name}.".startswith(f"{place}.") for place in places)


def arrows() -> dict[tuple[str, str], list[str]]:
    """Imports from room to room, each with the places where it stands, and what is imported there."""
    found: dict[tuple[str, str], list[str]] = {}
    for path, tree in parsed():
        here = room(path)
        for name, line in imports(tree, path):
            there = name.split(".")[1] if name.startswith("tlray.") else ""
            if here not in ("", "__main__", there) and there in LEVEL:
                found.setdefault((here, there), []).append(f"{where(path, line)} imports {name}")
    return found


def test_every_room_stands_on_a_floor() -> None:
    assert {room(path) for path in files()} - {"", "__main__"} == set(LEVEL)


def test_imports_point_down() -> None:
    found = arrows()
    wrong = [
        place
        for (here, there), places in found.items()
        for place in places
        if LEVEL[there] >= LEVEL[here] or below(place.split()[-1], APART.get(here, ()))
    ]
    assert wrong == []
    assert len(found) <= MOST_ARROWS


def test_no_two_modules_need_each_other() -> None:
    """A package and what lies in it count as one where they import each other."""
    modules = {".".join(dotted(path)) for path in files()}
    needs: dict[str, set[str]] = {name: set() for name in modules}
    for path, tree in parsed():
        here = ".".join(dotted(path))
        for name, _ in imports(tree, path):
            there = name if name in modules else name.rpartition(".")[0]
            if there in modules - {"tlray"} and not below(here, [there]) and not below(there, [here]):
                needs[here].add(there)
    assert len(list(TopologicalSorter(needs).static_order())) == len(modules)  # raises CycleError


def test_the_map_of_rooms_is_true() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## The rooms")[2].partition("\n## ")[0]
    table = [
        re.findall(r"`(\w+)`", line.split("|")[1]) for line in section.splitlines() if line.startswith("| `")
    ]
    assert table == FLOORS
    steps = re.findall(r"^\d+\. `([\w.]+)`", section, re.MULTILINE)
    assert 8 < len(steps) <= 14
    defined = set()
    for path, tree in parsed():
        module = ".".join(dotted(path)[1:])
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                defined.add(f"{module}.{node.name}")
                methods = [one.name for one in ast.walk(node) if isinstance(one, ast.FunctionDef)]
                defined |= {f"{module}.{node.name}.{name}" for name in methods}
    assert [step for step in steps if step not in defined] == []


def test_no_module_imports_a_job() -> None:
    names = [(name, where(path, line)) for path, tree in parsed() for name, line in imports(tree, path)]
    assert [place for name, place in names if name.split(".")[0] == "jobs"] == []


def test_the_package_itself_imports_nothing_of_ours() -> None:
    path = PACKAGE / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = type_only(tree)
    loaded = [name for name, line in imports(tree, path) if line not in typing]
    assert [name for name in loaded if name.startswith("tlray")] == []


def test_ray_stays_in_its_rooms() -> None:
    wrong = [
        where(path, line)
        for path, tree in parsed()
        for name, line in imports(tree, path)
        if name.split(".")[0] == "ray" and not below(".".join(dotted(path)), RAY)
    ]
    assert wrong == []


def test_only_storage_makes_filesystems() -> None:
    wrong = []
    for path, tree in parsed():
        if room(path) == "storage":
            continue
        annotations = type_only(tree)
        for name, line in imports(tree, path):
            foreign = name.split(".")[0] in ("s3fs", "fsspec", "boto3", "botocore", "aiobotocore")
            arrow = (name + ".").startswith("pyarrow.fs.") and "formats" not in dotted(path)
            if foreign or (arrow and line not in annotations):
                wrong.append(f"{where(path, line)} imports {name}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute | ast.Name):
                used = node.attr if isinstance(node, ast.Attribute) else node.id
                if used in FILESYSTEMS:
                    wrong.append(f"{where(path, node.lineno)} uses {used}")
    assert wrong == []


def test_timm_and_optimisers_come_without_the_compiler() -> None:
    """torch._dynamo takes 5 s to import; `tlray.models.eager` does without it."""
    wrong = []
    for path, tree in parsed():
        if dotted(path) == ["tlray", "models", "eager"]:
            continue
        for name, line in imports(tree, path):
            if name.split(".")[0] == "timm" or below(name, ["torch.optim", "torch._dynamo"]):
                wrong.append(f"{where(path, line)} imports {name}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("torch.optim."):
                wrong.append(f"{where(path, node.lineno)} calls {ast.unparse(node.func)}")
    assert wrong == []


def test_no_pickle_is_ever_loaded() -> None:
    unsafe = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    wrong = []
    for path, tree in parsed():
        for name, line in imports(tree, path):
            if name.split(".")[0] in unsafe or name == "torch.load":
                wrong.append(f"{where(path, line)} imports {name}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.hub.load"):
                wrong.append(f"{where(path, node.lineno)} uses {ast.unparse(node)}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant)
                if node.value.value is not False:
                    wrong.append(f"{where(path, node.value.lineno)} allows a pickle")
    assert wrong == []


def test_arrow_files_are_opened_where_extension_types_are_refused() -> None:
    opens = {
        "read_table", "read_schema", "read_metadata", "read_pandas", "ParquetFile", "ParquetDataset",
        "read_parquet", "open_stream", "open_file", "RecordBatchStreamReader", "RecordBatchFileReader",
        "read_feather", "feather", "read_message", "read_record_batch", "read_ipc_stream",
    }  # fmt: skip
    wrong = [
        f"{where(path, node.lineno)} uses {ast.unparse(node)}"
        for path, tree in parsed()
        if path.relative_to(PACKAGE).as_posix() not in ("data/extensions.py", "data/shards.py")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in opens
        and ast.unparse(node) != "extensions.open_file"
    ]
    assert wrong == []


def test_yaml_makes_plain_values_alone() -> None:
    wrong = [
        f"{where(path, node.lineno)} uses {ast.unparse(node.func)}"
        for path, tree in parsed()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load")
        and "Loader=yaml.BaseLoader" not in ast.unparse(node)  # makes text of every value
    ]
    assert wrong == []


def test_print_is_for_results() -> None:
    wrong = [
        where(path, node.lineno)
        for path, tree in parsed()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and ".".join(dotted(path)) not in PRINT
    ]
    assert wrong == []


def test_what_is_particular_to_a_task_stands_in_its_file() -> None:
    places = (PACKAGE / "tasks").iterdir()
    names = {path.stem for path in places if path.suffix == ".py" or (path / "__init__.py").exists()}
    names -= {"__init__", "base", "losses"}
    assert {"classification", "detection"} <= names  # a file, a folder
    wrong = []
    for path, tree in parsed():
        if room(path) == "tasks" and path.stem != "losses":
            continue
        for node in ast.walk(tree):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            sides += [node.value] if isinstance(node, ast.MatchValue) else []
            for side in sides:
                inner = side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]
                if any(isinstance(part, ast.Constant) and part.value in names for part in inner):
                    wrong.append(f"{where(path, side.lineno)}: {ast.unparse(side)}")
        for name, line in imports(tree, path):
            if name.startswith("tlray.tasks.") and name.split(".")[2] in names:
                wrong.append(f"{where(path, line)} imports {name}")
    assert wrong == []


def test_importing_the_package_does_no_work(tmp_path: Path) -> None:
    code = (
        "import os, sys, threading\n"
        "before = set(sys.modules)\n"
        "import tlray\n"
        "heavy = {'ray', 'torch', 'numpy', 'pyarrow', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert threading.active_count() == 1\n"
        "assert os.listdir('.') == [], os.listdir('.')\n"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.name)
def test_a_job_is_its_verb_and_no_more(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [name for name, _ in imports(tree, path) if name != "sys"] == ["tlray.cli.main"]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert [ast.unparse(call) for call in calls] == [f"main(['{path.stem}', *sys.argv[1:]])"]

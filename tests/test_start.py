"""What processes import: each kind does its work once in a fresh one, and what it does not use is not there.

Imports are most of the time that a start takes. `torch._dynamo` alone takes longer than the rest of torch,
and many modules of torch, torchvision and timm import it for a decorator.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toys import LABELS, dataset, picture
from tlray import tasks
from tlray.bundle import bundle
from tlray.data.image import Preprocess
from tlray.models.backbone import Backbone

ROOT = Path(__file__).resolve().parent.parent

# Used by nothing that a person waits for: by the report, by `tlray rank`, by tests, by `torch.compile`.
NEVER = {
    "faster_coco_eval", "jinja2.environment", "matplotlib", "mlflow", "moto", "networkx", "optuna", "pytest",
    "pytorch_metric_learning", "scipy", "sklearn", "sympy", "tensorboard", "tensorboardX", "torch._dynamo",
    "torch._inductor", "torchmetrics", "triton",
}  # fmt: skip
TORCH = {"timm", "torch", "torchvision"}

WORK = {
    # What the process does, and what it must not import beside NEVER. Ray Data and Ray Serve import pandas.
    "help": (
        "import contextlib; from tlray import cli\n"
        "with contextlib.suppress(SystemExit): cli.main(['--help'])",
        {*TORCH, "numpy", "pandas", "pyarrow", "pydantic", "ray", "rich", "yaml"},
    ),
    "predict": (
        "from tlray import cli; cli.main(['predict', BUNDLE, PICTURE])",
        {"fastapi", "fsspec", "pandas", "ray", "s3fs"},
    ),
    "ingest task": (
        "import pyarrow as pa; from tlray.data import masks; from tlray.ingestion import ingest\n"
        "block = pa.table({'path': [PICTURE.rpartition('/')[2]], 'row': [0]})\n"
        "seen = ingest._inspect_block(block, PICTURE.rpartition('/')[0], masks.AS_STORED)\n"
        "assert seen['kind'].to_pylist() == [None]",
        {*TORCH, "fastapi", "ray", "s3fs"},
    ),
    "rendering task": (
        "import numpy as np; from tlray import tasks; from tlray.data import loader\n"
        "from tlray.data.image import Preprocess\n"
        "size = Preprocess(size=(64, 64), mean=(0, 0, 0), std=(1, 1, 1))\n"
        "task = tasks.load({'name': 'classification'})\n"
        "source = loader.Source(DATA, 'train', task, tuple(task.columns), size)\n"
        "assert loader.make_batch(source, '', 0, np.arange(3)).x_BCHW.shape == (3, 3, 64, 64)",
        {"fastapi", "ray.serve", "ray.train", "ray.tune", "s3fs", "timm", "torchvision"},
    ),
    "training worker": (
        "import torch; from tlray.config import parse; from tlray.data.dataset import Dataset\n"
        "from tlray.training import fit; from tlray.training.candidate import Candidate\n"
        "tree = {'name': 'a', 'data': {'uri': DATA}, 'input': {'size': 64},\n"
        "        'model': {'backbone': 'resnet10t-nano', 'weights': 'builtin'}}\n"
        "config = fit.resolve_config(parse(tree, 'test'))\n"
        "one = Candidate(fit.check(config), config, 1, torch.device('cpu'))\n"
        "one.step(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), {'label': torch.tensor([0, 1])}, 0, 1.0)",
        {"fastapi", "ray.serve", "ray.tune", "s3fs"},
    ),
    "HTTP replica": (
        "from tlray.serving import app, model\n"
        "from tlray.config import Serving; app.ingress([('a', 1, 'a@1', 'model-a-v1')], Serving())",
        {*TORCH, "ray.data", "ray.train", "ray.tune", "s3fs"},
    ),
    "model's replica": (
        "from tlray.config import Serving; from tlray.serving.model import Served, load_predictor\n"
        "one = load_predictor(Served('a', 1, BUNDLE), Serving())\n"
        "assert len(one.predict([open(PICTURE, 'rb').read()])) == 1",
        {"ray.data", "ray.train", "ray.tune", "s3fs"},
    ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A bundle, a picture and a data set."""
    root = tmp_path_factory.mktemp("start")
    (root / "a.jpg").write_bytes(picture(0, 0))
    task = tasks.load({"name": "classification"})
    backbone = Backbone("resnet10t-nano", "builtin", size=64)
    preprocess = Preprocess(size=(64, 64), mean=backbone.mean, std=backbone.std)
    module = task.build(backbone, LABELS)
    model = bundle.Model(module, task, backbone.spec(), 0, preprocess, LABELS, "f" * 64)
    bundle.save(str(root / "bundle"), model, {}, {}, [picture(1, 1)])
    data = dataset(root / "data", train=6, validation=6)
    return {"BUNDLE": str(root / "bundle"), "PICTURE": str(root / "a.jpg"), "DATA": data}


@pytest.mark.parametrize("kind", WORK)
def test_a_process_imports_what_it_uses(kind: str, places: dict[str, str], tmp_path: Path) -> None:
    work, unused = WORK[kind]
    head = "".join(f"{name} = {value!r}\n" for name, value in places.items())
    found = tmp_path / "modules.json"
    tail = f"\nimport json, sys\nopen({str(found)!r}, 'w').write(json.dumps(list(sys.modules)))"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{head}{work}{tail}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted((NEVER | unused) & set(json.loads(found.read_text()))) == []


def test_what_must_not_be_imported_is_spelled_as_it_is() -> None:
    """A name of nothing would be absent for ever."""
    import importlib.util

    names = {*NEVER, *(name for _, unused in WORK.values() for name in unused)} - {"mlflow"}  # an extra
    assert [name for name in sorted(names) if importlib.util.find_spec(name) is None] == []

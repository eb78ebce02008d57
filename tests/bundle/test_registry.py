"""What a reference to a model means, and that finding it needs no torch."""

import subprocess
import sys

import pytest

from tlray.bundle import registry
from tlray.bundle.registry import Reference
from tlray.errors import BundleError, RegistryError


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Manifests where bundles would be: a run, a bundle and two versions of a model."""
    for place in ("runs/cats/best", "dogs", "models/birds/1", "models/birds/2"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "manifest.json").write_text("{}")
    (tmp_path / "models/birds/aliases.json").write_text('{"live": 1, "history": []}')
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("ref", "uri", "name", "version"),
    [
        ("runs/cats", "runs/cats/best", "cats", None),
        ("runs/cats/best", "runs/cats/best", "cats", None),
        ("dogs", "dogs", "dogs", None),
        ("birds", "models/birds/1", "birds", 1),
        ("birds@live", "models/birds/1", "birds", 1),
        ("birds@2", "models/birds/2", "birds", 2),
    ],
)
def test_a_reference_is_a_bundle_a_run_or_a_name(places, ref, uri, name, version):
    assert registry.find(ref, "models") == Reference(uri, name, version)


@pytest.mark.parametrize(
    ("ref", "error", "reason"),
    [
        ("runs/dogs", BundleError, "runs/dogs: no bundle there"),
        ("empty", BundleError, "empty: no bundle there"),
        ("birds@3", RegistryError, "birds@3: no such version; accepted: birds@live, birds@1, birds@2"),
        ("Birds", RegistryError, "'Birds': no model's name"),
    ],
)
def test_a_reference_to_nothing_says_what_is_accepted(places, ref, error, reason):
    with pytest.raises(error) as caught:
        registry.find(ref, "models")
    assert str(caught.value).startswith(reason) and "\n" not in str(caught.value)
    if error is BundleError:
        with pytest.raises(BundleError, match="no bundle there"):
            registry.promote(ref, "models", "new")


def test_a_name_in_an_empty_registry_says_how_to_fill_it(places):
    with pytest.raises(RegistryError, match="birds: unknown model in empty; it holds no model yet"):
        registry.find("birds", "empty")


def test_the_registry_is_read_without_torch():
    code = "import sys, tlray.bundle.registry, tlray.serving.app; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

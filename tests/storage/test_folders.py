from __future__ import annotations

from pathlib import Path

from tests.storage.content import contents, fill
from tlray import storage


def test_names_with_pattern_signs(root: str) -> None:
    storage.write_bytes(f"{root}/a[1]*.txt", b"1")
    storage.copy_dir(root, f"{root}-copy")
    storage.delete(f"{root}/a[1]*.txt")
    assert not storage.exists(f"{root}/a[1]*.txt")
    assert contents(f"{root}-copy") == {"a[1]*.txt": "1"}


def test_folders_go_up_and_down(root: str, tmp_path: Path) -> None:
    fill(tmp_path / "src", a="1", deep__b="2")
    storage.upload(tmp_path / "src", root)
    storage.copy_dir(root, f"{root}-copy")
    storage.download(f"{root}-copy", tmp_path / "down")
    assert contents(str(tmp_path / "down")) == {"a": "1", "deep/b": "2"}
    with storage.local_copy(root) as folder:
        assert (folder / "deep/b").read_text() == "2"
    with storage.local_copy(f"{root}/deep/b") as file:
        assert file.read_text() == "2"
    assert file.exists() == storage.is_local(root)

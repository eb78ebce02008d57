"""Publishing of folders that many workers fill at once, too large to pass through one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tlray import storage


@contextmanager
def publish_in_place(uri: str, marker: str) -> Iterator[str]:
    """URI of a folder for workers to fill; when the block ends, it is complete at ``uri``.

    The caller writes ``marker`` last. Locally this is `storage.publish`: the folder is made beside the target
    and renamed. Object storage cannot rename, so workers write to the target itself: an older publication is
    taken away first, and until the block ends readers refuse the folder as unfinished. After an exception
    nothing of the new folder is left.
    """
    if storage.is_local(uri):
        with storage.publish(uri, marker) as folder:
            yield str(folder)
        return
    unfinished = storage.join(uri, storage.UNFINISHED)
    storage.delete(storage.join(uri, marker))
    storage.write_bytes(unfinished, b"")
    try:
        for file in storage.walk(uri):
            storage.delete(storage.join(uri, file.path))
        yield uri
        storage.delete(unfinished)
    except BaseException:
        storage.delete(uri)
        raise

"""URI -> bytes: local folders and ``s3://`` behind one set of functions.

No other package makes a filesystem. Whatever goes wrong is one StorageError of one line.

Names that begin with "." are tlray's own (staging, locks): they are never listed, walked or copied.
"""

from tlray.storage.failures import faults
from tlray.storage.files import (
    open_fs,
    read_bytes,
    read_head,
    read_json,
    read_range,
    update_json,
    write_bytes,
    write_json,
    write_new,
)
from tlray.storage.folders import copy_dir, delete, download, local_copy, upload
from tlray.storage.listing import FileInfo, Tree, exists, is_dir, listdir, tree, walk
from tlray.storage.publishing import UNFINISHED, publish, sweep, unfinished
from tlray.storage.threads import in_threads
from tlray.storage.uri import absolute, is_local, join, name, parent

__all__ = [
    "UNFINISHED",
    "FileInfo",
    "Tree",
    "absolute",
    "copy_dir",
    "delete",
    "download",
    "exists",
    "faults",
    "in_threads",
    "is_dir",
    "is_local",
    "join",
    "listdir",
    "local_copy",
    "name",
    "open_fs",
    "parent",
    "publish",
    "read_bytes",
    "read_head",
    "read_json",
    "read_range",
    "sweep",
    "tree",
    "unfinished",
    "update_json",
    "upload",
    "walk",
    "write_bytes",
    "write_json",
    "write_new",
]

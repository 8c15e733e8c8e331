"""Write files in one piece: a reader sees the old one or the new one, never half of one."""

import itertools
import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any failure.

    A reader therefore sees the old file or the new one, never half of one, also after Ctrl-C or on a full disk.
    The temporary name keeps the suffix, since libraries choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_new(path: str | Path, content: bytes) -> Path:
    """Write bytes as `path`, or as the first free of "name-2", "name-3", ... where that is taken; return where.

    Nothing is ever overwritten, and the content appears in one piece.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for target in itertools.chain([path], (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2))):
        try:
            target.touch(exist_ok=False)  # takes the name, so that no other process can
            break
        except FileExistsError:
            continue
    try:
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return target

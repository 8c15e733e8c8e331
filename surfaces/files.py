"""Write files in one piece: a reader sees the old one or the new one, never half of one."""

import glob
import itertools
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DAY = 24 * 60 * 60  # seconds


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any failure.

    A reader therefore sees the old file or the new one, never half of one, also after Ctrl-C or on a full disk.
    The temporary name keeps the suffix, since libraries choose the format by it. What processes that were killed left
    of writing the same path is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    temporary = path.with_name(f".{path.stem}.{platform.node()}-{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_stale(path: Path) -> None:
    """Remove the unfinished files that dead processes of this machine left beside `path`."""
    start, end = f".{path.stem}.", f".part{path.suffix}"
    for left in path.parent.glob(f"{glob.escape(start)}*{glob.escape(end)}"):
        machine, _, process = left.name[len(start):-len(end)].rpartition("-")
        if machine in ("", platform.node()) and process.isdigit() and not _may_live(int(process), left):
            left.unlink(missing_ok=True)


def _may_live(process: int, left: Path) -> bool:
    """Whether a process may still be writing `left`; on Windows, where asking would end it, for a day."""
    if os.name == "nt":
        return time.time() - left.stat().st_mtime < DAY
    try:
        os.kill(process, 0)  # sends nothing, only asks
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


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

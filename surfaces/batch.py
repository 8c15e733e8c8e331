"""Photographs in, photographs out: what a command does with a list of files.

    failed = process_files(list_outputs(folder, results), denoised, note="unet")
"""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from surfaces.photos import read_photo_uint8, write_photo


def process_files(pairs: Iterable[tuple[Path, Path]], process: Callable[[np.ndarray], np.ndarray], note: str = "",
                  force: bool = False) -> int:
    """Write what `process` makes of each photograph, (H, W, 3) uint8 to the same; return the number that failed.

    One that fails, or whose result is there already (unless `force`), is told on stderr, and the rest goes on; a result
    never overwrites one of the photographs or another result. A line with `note` on stdout tells of each.

    Raises:
        KeyboardInterrupt: after telling which photograph was under way.
    """
    pairs = list(pairs)
    taken, failed = {source.resolve() for source, _ in pairs}, 0  # what is never overwritten, whatever `force` says
    for source, target in pairs:
        started = time.monotonic()
        try:
            # the same file may go by another name, a link
            if target.resolve() in taken or target.exists() and any(p.exists() and target.samefile(p) for p in taken):
                raise FileExistsError(f"{source}: {target} is a photograph of IN or the result of another, "
                                      "never overwritten")
            if target.exists() and not force:
                raise FileExistsError(f"{source}: {target} is there already (--force overwrites it)")
            result = process(read_photo_uint8(source))
            write_photo(target, result)
        except (OSError, ValueError, RuntimeError, MemoryError) as error:  # the others are processed all the same
            failed += 1
            print(error if str(source) in str(error) else f"{source}: {error!r}", file=sys.stderr)
        except KeyboardInterrupt:
            print(f"{source}: stopped before it was done", file=sys.stderr)
            raise
        else:
            taken.add(target.resolve())
            height, width, _ = result.shape
            print(f"{source} -> {target}, {width} x {height} pixels, {note}, {time.monotonic() - started:.1f} s",
                  flush=True)
    return failed

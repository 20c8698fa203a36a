"""Files of many records, local or remote (gs://), read at random by ranges of bytes.

A file is scanned once for where its records lie: headers only, over everything between them it seeks. The index is
kept in a cache folder, so that later runs, and other hosts that share the folder, start at once. With an index every
format has random access: the order of the data is a function of (seed, step), and a checkpoint needs no position.
"""

import glob
import hashlib
import io
import logging
import os
import random
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path

import numpy as np
import tensorflow as tf

from vadapter.base import local_files
from vadapter.base.errors import UserError
from vadapter.base.paths import absolute, is_remote
from vadapter.data.reading.shard_index import Index
from vadapter.data.reading.storage import open_file

_VERSION = 2  # of the index; another one is scanned again


def expand(patterns: str | Sequence[str]) -> list[str]:
    """Returns the files that patterns name, in order: brace ranges `{000..127}`, lists `{a,b}`, and `*`, `?`, `[...]`.

    Raises:
        UserError: a pattern with a wildcard has no match, or there is no pattern.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    found: list[str] = []
    for pattern in (p for text in patterns if text for p in _braces(text)):
        pattern = absolute(pattern)
        if not re.search(r"[*?\[]", pattern):
            found.append(pattern)
            continue
        matches = tf.io.gfile.glob(pattern) if is_remote(pattern) else glob.glob(pattern, recursive=True)
        if not matches:
            raise UserError(f"Expected files named {pattern}; found none. Correct the pattern.")
        found += sorted(matches)
    if not found:
        raise UserError("Expected names of files, or patterns such as data/{000..127}.tar; found none. Give some.")
    return list(dict.fromkeys(found))


def _braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        yield pattern
        return
    first, last, listed = match.groups()
    if listed is None:
        width = len(first) if first.startswith("0") else 0
        options = [str(i).zfill(width) for i in range(int(first), int(last) + 1)]
    else:
        options = listed.split(",")
    for option in options:
        yield from _braces(pattern[: match.start()] + option + pattern[match.end() :])


# Cache


def default_cache() -> str:
    """Returns the folder of indexes: `vadapter/shards` in `$XDG_CACHE_HOME` or `~/.cache`."""
    return str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vadapter" / "shards")


def indexes(
    files: Sequence[str], scan: Callable[[io.BufferedReader], Index], settings: str, cache_dir: str = ""
) -> list[Index]:
    """Returns the index of each file, from the cache or by scanning it. Files are scanned in parallel.

    They are taken in a random order, so that hosts that share a cache folder share the work.

    Args:
        files: local or remote.
        scan: makes an index of an open file.
        settings: everything that `scan` depends on.
        cache_dir: where indexes are kept, local or remote; the default is `default_cache()`.

    Raises:
        UserError: files are missing, or one is not of the expected format.
    """
    cache_dir = cache_dir or default_cache()

    def one(path: str) -> Index:
        if not is_remote(path):
            local_files.check(path)
        stat = tf.io.gfile.stat(path)
        text = f"{_VERSION} {settings} {path} {stat.length} {stat.mtime_nsec}"
        kept = os.path.join(cache_dir, hashlib.sha256(text.encode()).hexdigest()[:32] + ".npz")
        index = _load(kept)
        if index is None:
            with open_file(path) as file:
                try:
                    index = scan(file)
                except UserError as e:
                    raise UserError(f"{path}: {e}") from e
            _save(kept, index)
        for problem in index.problems:
            logging.warning("left out %s: %s", path, problem)
        return index

    order = random.sample(range(len(files)), len(files))
    missing: list[str] = []
    found: dict[int, Index] = {}
    with futures.ThreadPoolExecutor(min(32, max(len(files), 1))) as pool:
        for i, result in zip(order, [pool.submit(one, files[i]) for i in order], strict=True):
            try:
                found[i] = result.result()
            except (tf.errors.NotFoundError, FileNotFoundError):
                missing.append(files[i])
            except (tf.errors.OpError, OSError) as e:
                raise UserError(f"Expected a file of records; {e}. Leave it out, or correct the pattern.") from e
    if missing:
        raise UserError(
            f"Expected {len(files)} files; {len(missing)} are missing: {', '.join(sorted(missing)[:3])}"
            f"{' ...' if len(missing) > 3 else ''}. Correct the names or the range in braces."
        )
    return [found[i] for i in range(len(files))]


def _load(path: str) -> Index | None:
    """Reads a kept index; None if there is none that can be used."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            kept = np.load(io.BytesIO(file.read()), allow_pickle=False)
        return Index(kept["offsets"], kept["sizes"], int(kept["left_out"]), tuple(str(p) for p in kept["problems"]))
    except Exception:  # absent or damaged: scanned again
        return None


def _save(path: str, index: Index) -> None:
    buffer = io.BytesIO()
    problems = np.asarray(index.problems, np.str_)
    np.savez(buffer, offsets=index.offsets, sizes=index.sizes, left_out=index.left_out, problems=problems)
    part = f"{path}.{uuid.uuid4().hex}"
    try:
        tf.io.gfile.makedirs(os.path.dirname(path))
        with tf.io.gfile.GFile(part, "wb") as file:
            file.write(buffer.getvalue())
        tf.io.gfile.rename(part, path, overwrite=True)
    except (tf.errors.OpError, OSError) as e:
        logging.warning("cannot keep the index %s (%s); the next run will scan again", path, e)

"""Compiled programs are kept on disk, so that the next process need not compile them again.

They lie in `$XDG_CACHE_HOME/vadapter/compiled` (`~/.cache/vadapter/compiled`). `VADAPTER_COMPILE_CACHE` names another
folder, or is `off`. What jax itself was told (`JAX_COMPILATION_CACHE_DIR`) stands.
"""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

VARIABLE = "VADAPTER_COMPILE_CACHE"
LIMIT = 1 << 30  # bytes; the oldest programs are deleted first


def folder() -> Path | None:
    """Returns where programs of this machine are kept; None where nothing is kept."""
    chosen = os.environ.get(VARIABLE, "").strip()
    if chosen.lower() in ("off", "0", "false", "no"):
        return None
    if chosen:
        root = Path(chosen).expanduser()
    else:
        cache = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG rules: a path that is not absolute is as good as none.
        root = (Path(cache) if os.path.isabs(cache) else Path(os.path.expanduser("~/.cache"))) / "vadapter" / "compiled"
    return root / _machine()


def start() -> Path | None:
    """Has jax keep compiled programs. Returns the folder; None where it is turned off, or cannot be written.

    To be called when the processes of a run are connected. A cache is a help: no trouble with it stops a command.
    """
    import jax

    if jax.config.jax_compilation_cache_dir or (place := folder()) is None:
        return None
    if jax.distributed.is_initialized() and jax.default_backend() == "cpu":
        return None  # a program for the CPUs of several processes is that of one process's own devices
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK | os.X_OK):
            return None
        _prune(place)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return place


def _machine() -> str:
    """A name for machines that run one another's programs: a home directory may serve several kinds of them."""
    flags = platform.processor()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
        flags = next((line for line in f if line.startswith(("flags", "Features"))), flags)
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:12]}"


def _prune(place: Path) -> None:
    files = []
    for path in place.iterdir():
        with contextlib.suppress(OSError):  # another process deletes, too
            found = path.stat()
            files.append((found.st_mtime, found.st_size, path))
    size = sum(entry[1] for entry in files)
    for _, bytes_, path in sorted(files):
        if size <= LIMIT:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            size -= bytes_

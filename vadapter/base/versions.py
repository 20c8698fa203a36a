"""Which vadapter runs here, for whatever is written about a run."""

import platform
import subprocess
from pathlib import Path

import vadapter


def git_commit() -> str:
    """The commit of the checkout that vadapter runs from, `+` after it where files differ; empty outside of one."""
    root = Path(vadapter.__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if changed.stdout.strip() else "")


def here() -> dict[str, str]:
    """Returns `vadapter` and `commit`."""
    return {"vadapter": vadapter.__version__, "commit": git_commit()}


def machine() -> dict[str, str | int]:
    """Returns `here`, the versions of python and jax, and the devices: their kind, number and platform."""
    import jax

    device = jax.devices()[0]
    versions = {"python": platform.python_version(), "jax": jax.__version__}
    devices = {"device": device.device_kind, "devices": jax.device_count(), "platform": device.platform}
    return {**here(), **versions, **devices, "machine": platform.machine()}

"""How long a process takes until its first word or its first step, compilation cached and not."""

import tempfile
from pathlib import Path

import startup
import startup_bundle

from gpu_stages.record import Record, times
from gpu_stages.training import describe_device


def start(record: Record, directory: str) -> None:
    """Times whole commands on a bundle of real sizes with random weights."""
    del directory
    describe_device(record)
    with tempfile.TemporaryDirectory() as folder:
        arguments: list[str] = []
        bundle = ""
        with record.figure("bundle") as entry:  # imports, trains one step, exports
            bundle, arguments = startup_bundle.make(Path(folder), record.small)
            entry["gigabytes"] = round(sum(Path(file).stat().st_size for file in startup.files(bundle)) / 1e9, 3)
        if not bundle:
            return
        # What people wait for most comes first. A first run compiles, the others find its programs in the cache.
        arms = startup.arms(bundle, str(startup_bundle.PICTURE), arguments)
        for name in ("infer", "load", "read", "train", "import"):
            with record.figure(name) as entry:
                entry["first_ms"] = times(arms[name], 1, warm=0)["median_ms"]
                entry |= times(arms[name], 1 if record.small else 2, warm=0)

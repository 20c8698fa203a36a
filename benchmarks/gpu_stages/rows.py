"""Packed beside unpacked rows, at a size that fills a GPU."""

import argparse

import packing

from gpu_stages.record import Record
from gpu_stages.training import describe_device


def packed(record: Record, directory: str) -> None:
    """Targets a second of captions of real length, several of them in a row and one."""
    del directory
    describe_device(record)
    sizes = {"rows": 2, "samples": 2, "width": 64, "depth": 2} if record.small else {"rows": 32, "samples": 4}
    for width in (64,) if record.small else (1024, 2048):
        args = argparse.Namespace(**{"rounds": 7, "depth": 12, **sizes, "width": width})
        with record.figure(f"width {width}", **vars(args)) as entry:
            entry |= packing.measure(args)
            entry["ratio"] = entry["times_unpacked"]["median"]

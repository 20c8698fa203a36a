"""What each process holds of a batch, and records of all processes together."""

import json
from typing import Any

import jax
import numpy as np


def local_rows(ids: Any) -> np.ndarray:
    """Returns this process's rows of an array [B, ...] that is sharded like the batch, in order.

    That is all of them where each process has all: one process, or a tensor axis that joins them all.
    """
    if not isinstance(ids, jax.Array) or ids.is_fully_addressable or ids.is_fully_replicated:
        return np.asarray(ids)
    shards = {shard.index[0].start or 0: np.asarray(shard.data) for shard in ids.addressable_shards}
    return np.concatenate([shards[start] for start in sorted(shards)])


def is_first_with_its_rows(ids: Any) -> bool:
    """Whether no process before this one has the same rows of an array [B, ...] that is sharded like the batch."""
    if not isinstance(ids, jax.Array) or ids.is_fully_addressable:
        return True
    starts: dict[int, set[int]] = {}
    for device, index in ids.sharding.devices_indices_map(ids.shape).items():
        starts.setdefault(device.process_index, set()).add(index[0].start or 0)
    here = jax.process_index()
    return here == min(process for process, found in starts.items() if found == starts[here])


def gather_records(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the records of all processes, in the order of the processes; with one process, the records themselves."""
    if jax.process_count() == 1:
        return records
    from jax.experimental import multihost_utils

    content = np.frombuffer(json.dumps(records).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array(content.size))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: content.size] = content
    everything = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [r for row, size in zip(everything, sizes, strict=True) for r in json.loads(row[:size].tobytes())]

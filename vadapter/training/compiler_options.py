"""Options of the TPU compiler for a training step, by type of TPU: what it computes is the same, sooner."""

from collections.abc import Mapping
from typing import Any

# Fully sharded weights are gathered layer by layer. The compiler does that beside the products of the layer before on
# TPU v5e; on others it must be told to (MaxText's benchmarks/xla_flags_library.py has the same options).
_GATHER_BESIDE = {
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
}

# More on-chip memory for one operation gives larger tiles of matrix products, and a longer compilation. The compiler's
# own limit is 16 MiB; a v4 core has no more, v5p has 64 MiB, v5e and v6e have 128 MiB.
_VMEM = "xla_tpu_scoped_vmem_limit_kib"

_V4 = _GATHER_BESIDE
_V5E = {_VMEM: 24 * 1024}
_V5P = _GATHER_BESIDE | {_VMEM: 24 * 1024}
_V6E = _GATHER_BESIDE | {_VMEM: 96 * 1024}
# As jax names the kinds of devices, and as pallas.tpu reads these names.
_KINDS: dict[str, dict[str, Any]] = {
    **{"TPU v4": _V4, "TPU v5 lite": _V5E, "TPU v5e": _V5E, "TPU v5": _V5P, "TPU v5p": _V5P},
    **{"TPU v6 lite": _V6E, "TPU v6e": _V6E},
}


def compiler_options(device: Any, tpu_options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options for a jax device, none if it is no TPU.

    Args:
        device: of the mesh; types of TPU that are not known here have no options of their own.
        tpu_options: the user's, which win; a value of None takes an option out.
    """
    if device.platform != "tpu":
        return {}
    options = _KINDS.get(device.device_kind, {}) | dict(tpu_options)
    return {name: value for name, value in options.items() if value is not None}

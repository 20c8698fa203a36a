"""Settings of the test process, before jax is imported: eight host devices on the CPU and no accelerator.

Programs here are compiled more often than run, so XLA is told to optimise little: that halves the time of the tests.
VADAPTER_TEST_PLATFORM=cuda runs the tests on the devices of that platform, as they are; those that need eight fail.
"""

import os

_PLATFORM = os.environ.get("VADAPTER_TEST_PLATFORM")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if _PLATFORM:
    os.environ["JAX_PLATFORMS"] = f"{_PLATFORM},cpu" if _PLATFORM != "cpu" else "cpu"
else:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
_FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
}
if _PLATFORM:
    _FLAGS = {}
_given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([_given, *(f"{flag}={x}" for flag, x in _FLAGS.items() if flag not in _given)])

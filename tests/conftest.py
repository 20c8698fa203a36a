"""Settings of the test process, before jax is imported: eight host devices on the CPU and no accelerator.

Programs here are compiled more often than run. XLA is told to optimise little and to make no kernels of its fusions,
which takes a quarter of the time; and what is compiled once is kept for the whole session: its workers and the
commands that they start share one folder.
VADAPTER_TEST_PLATFORM=cuda runs the tests on the devices of that platform, as they are; those that need eight fail.
"""

import atexit
import os
import shutil
import signal
import tempfile

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # in the background of a shell, and the tests' children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
    "--xla_cpu_use_fusion_emitters": "false",
    # Eight devices on two busy cores may meet late; by default XLA then ends the process after 40 s.
    "--xla_cpu_collective_call_terminate_timeout_seconds": "600",
    "--xla_cpu_collective_timeout_seconds": "600",
}
if _PLATFORM:
    _FLAGS = {}
_given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([_given, *(f"{flag}={x}" for flag, x in _FLAGS.items() if flag not in _given)])

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the first process makes it; the others inherit it
    _compiled = tempfile.mkdtemp(prefix="vadapter-compiled-")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

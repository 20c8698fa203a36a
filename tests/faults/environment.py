"""What processes of the harness see of this machine, and a folder for their files. To be imported before jax."""

import os
import tempfile

# One device a process, little work for the compiler, and no threads before a fork.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
WORK = tempfile.mkdtemp(prefix="vadapter-faults-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(WORK, "compiled")

"""The stages of benchmarks/gpu_day.py. Each is a function of a `Record`, in which it notes its figures."""

"""Stage `tests`: does the GPU compute what the CPU does? Then the repository's own tests, on the GPU."""

import dataclasses
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gpu_stages.record import Record
from gpu_stages.training import describe_device
from tests.models import small
from vadapter.models.decoder import Decoder, DecoderConfig
from vadapter.models.positions import RopeScaling
from vadapter.models.vit import ViT
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.training.objectives import make_objective
from vadapter.training.step import loss_and_gradients

# Relative to the norm of the CPU's result in f32.
TOLERANCE = {"float32": 1e-4, "bfloat16": 4e-2}
DECODERS: dict[str, dict[str, Any]] = {
    "palm": dict(parallel_block=True, num_kv_heads=1, norm="layer_no_bias", activation="silu", scale_embedding=True),
    "gemma2": dict(
        post_norms=True, attention_pattern=("local", "global"), window=4, attention_softcap=50.0, norm="rms_plus_one"
    ),
    "gemma3": dict(qk_norm=True, post_norms=True, attention_pattern=("local", "global"), window=4, rope_local_base=1e3),
    "qwen2.5": dict(qkv_bias=True, activation="silu", tied_head=False),
    "llama3": dict(activation="silu", rope_scaling=RopeScaling("llama3", factor=32.0)),
}
# Those that need no TensorFlow. Left out by name: tests of several devices, and of arithmetic on eight of them.
_MODELS = ("adapters", "attention", "decoder", "flops", "int8_kernels", "losses", "masks", "vit", "vlm")
FILES = [
    *(f"tests/models/test_{name}.py" for name in _MODELS),
    *(f"tests/training/test_{name}.py" for name in ("step", "optimizers", "freezing", "objectives")),
    *(f"tests/generation/test_{name}.py" for name in ("decoding", "beam")),
]
LEFT_OUT = " and ".join(
    f"not {word}"
    for word in ("mesh", "sharded", "slices", "moments_lie", "as_the_kernel", "neither_cache", "eight_devices")
)


def tests(record: Record, directory: str) -> None:
    """Comparisons first, then pytest for as long as there is time."""
    jax.config.update("jax_default_matmul_precision", "highest")  # else f32 products are rounded to TF32
    describe_device(record)
    cases = _cases()
    if record.small:  # a case of each kind
        chosen = ("vit_float32", "decoder_palm_bfloat16", "loss_and_gradients_queries", "cached_equals_uncached_palm")
        cases = {name: cases[name] for name in chosen}
    start = time.monotonic()
    with ThreadPoolExecutor(2 if record.small else 8) as pool:  # compilation takes nearly all of the time
        waiting = {name: pool.submit(run) for name, (run, _) in cases.items()}
        for name, (_, tolerance) in cases.items():
            with record.figure(name, tolerance=tolerance) as entry:
                entry["relative_error"] = float(f"{waiting[name].result():.3g}")
                assert entry["relative_error"] < tolerance, "the results differ"
    bad = [name for name, entry in record.figures.items() if "error" in entry]
    record.note(compared=len(cases), differing=bad, compared_s=round(time.monotonic() - start, 1))
    _pytest(record, directory)


def _error(found: Any, right: Any) -> float:
    """The largest relative error of an array. Gradients that are zero but for rounding count beside the others."""
    found, right = ([np.asarray(x, np.float64) for x in jax.tree.leaves(tree)] for tree in (found, right))
    assert all(np.isfinite(x).all() for x in found), "a result is not finite"
    least = 0.01 * max(np.linalg.norm(x) for x in right)
    return max(np.linalg.norm(a - b) / max(np.linalg.norm(b), least) for a, b in zip(found, right, strict=True))


def _on(platform: str | None, run: Callable, arguments: tuple) -> Any:
    device = jax.devices(platform)[0]
    return jax.block_until_ready(jax.jit(run)(*jax.device_put(arguments, device)))


def _against_cpu(run: Callable, exact: Callable, arguments: tuple) -> float:
    return _error(_on(None, run, arguments), _on("cpu", exact, arguments))


def _init(module: nn.Module, *given: Any, **settings: Any) -> Any:
    with jax.default_device(jax.devices("cpu")[0]):
        return nn.unbox(jax.jit(lambda key: module.init(key, *given, **settings))(jax.random.key(1)))


def _cases() -> dict[str, tuple[Callable[[], float], float]]:
    cases: dict[str, tuple[Callable[[], float], float]] = {}
    for name in ("paper", "queries"):
        cases[f"loss_and_gradients_{name}"] = (lambda name=name: _gradients(name), TOLERANCE["float32"])
    for name in DECODERS:
        cases[f"cached_equals_uncached_{name}"] = (lambda name=name: _cached(name), TOLERANCE["float32"])
    if jax.default_backend() == "gpu":
        for name in ("palm", "llama3"):
            cases[f"cudnn_equals_xla_{name}"] = (lambda name=name: _cudnn(name), TOLERANCE["bfloat16"])
    for dtype, tolerance in TOLERANCE.items():  # a run has shown these
        cases[f"vit_{dtype}"] = (lambda dtype=dtype: _vit(dtype), tolerance)
        for name in small.ADAPTERS:
            cases[f"adapter_{name}_{dtype}"] = (lambda name=name, dtype=dtype: _adapter(name, dtype), tolerance)
        for name in DECODERS:
            cases[f"decoder_{name}_{dtype}"] = (lambda name=name, dtype=dtype: _decoder(name, dtype), tolerance)
    return cases


def _typed(config: Any, dtype: str) -> Any:
    """Returns a configuration with every part's computation in `dtype`."""
    parts = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    parts = {name: _typed(x, dtype) for name, x in parts.items() if dataclasses.is_dataclass(x) and hasattr(x, "dtype")}
    return dataclasses.replace(config, **parts, **({"dtype": dtype} if hasattr(config, "dtype") else {}))


def _module_error(make: Callable[[str], nn.Module], dtype: str, *given: Any) -> float:
    params = _init(make("float32"), *given)
    run, exact = make(dtype).apply, make("float32").apply
    return _against_cpu(run, exact, (params, *given))


def _vit(dtype: str) -> float:
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    return _module_error(lambda dtype: ViT(small.vit(dtype=dtype)), dtype, frames)


def _adapter(name: str, dtype: str) -> float:
    visual = np.random.default_rng(0).normal(size=(4, 2, 4, 32)).astype(np.float32)
    return _module_error(lambda dtype: _typed(small.ADAPTERS[name], dtype).make(32), dtype, visual)


def _config(name: str, **changes: Any) -> DecoderConfig:
    return small.decoder(**{**DECODERS[name], **changes})


def _rows(width: int = 32, length: int = 12) -> tuple[Any, Any, Any]:
    """Rows of two segments and some padding."""
    x = np.random.default_rng(0).normal(size=(4, length, width)).astype(np.float32)
    segments = np.tile(np.repeat([1, 2, 0], [5, 5, length - 10]), (4, 1)).astype(np.int32)
    return x, segments, np.tile(np.r_[:5, :5, : length - 10], (4, 1)).astype(np.int32)


def _decoder(name: str, dtype: str) -> float:
    x, segments, positions = _rows()
    params = _init(Decoder(_config(name)), x, segments, positions)

    def run(dtype: str) -> Callable:
        def hidden(params: Any, x: Any, segments: Any, positions: Any) -> Any:
            y = Decoder(_config(name, dtype=dtype)).apply(params, x, segments, positions)[0]
            return jnp.where(segments[..., None] > 0, y, 0).astype(jnp.float32)

        return hidden

    return _against_cpu(run(dtype), run("float32"), (params, x, segments, positions))


def _gradients(name: str) -> float:
    config = small.vlm(name)
    batch = small.batch(config)
    params = _init(VLM(config), batch)["params"]
    objective = make_objective(VLM(config))

    def run(params: Any, batch: Any) -> Any:
        sums, gradients = loss_and_gradients(objective, params, {}, batch)
        return gradients, sums.loss_sum / sums.weight_sum

    return _against_cpu(run, run, (params, batch))


def _cached(name: str) -> float:
    """Tokens read one by one after a prompt, beside all at once."""
    config = VLMConfig(_config(name))
    ids = np.random.default_rng(0).integers(1, 64, (4, 10)).astype(np.int32)
    ones = np.ones_like(ids)
    full = small.batch(small.vlm("mlp"), rows=4)
    fields = dict(tokens=ids, segment_ids=ones, positions=np.cumsum(ones, 1, dtype=np.int32) - 1, media_index=-ones)
    fields |= {"media": np.zeros((4, 0, 1, 1, 1, 3), np.uint8)}
    batch = full.replace(**fields)
    model = VLM(config)
    params = _init(model, batch)

    def at_once(params: Any, batch: Any) -> Any:
        return model.apply(params, batch, 0, method="prefill")[0]

    def one_by_one(params: Any, batch: Any) -> Any:
        start = jax.tree.map(lambda x: x[:, :6] if x.shape[1] == 10 else x, batch)
        logits, cache = model.apply(params, start, 4, method="prefill")
        for i in range(6, 10):
            logits, cache = model.apply(params, batch.tokens[:, i], batch.positions[:, i], cache, method="extend")
        return logits

    return _error(_on(None, one_by_one, (params, batch)), _on(None, at_once, (params, batch)))


def _cudnn(name: str) -> float:
    """Hidden states and the gradient with respect to the input, beside xla's, both in bf16."""
    x, segments, positions = _rows(64, 64)
    changes: dict[str, Any] = {"width": 64, "head_dim": 64, "dtype": "bfloat16"}
    params = _init(Decoder(_config(name, **changes)), x, segments, positions)

    def run(attention: str) -> Callable:
        model = Decoder(_config(name, **changes, attention_impl=attention))

        def total(x: Any, params: Any) -> Any:
            y = model.apply(params, x, segments, positions)[0]
            y = jnp.where(segments[..., None] > 0, y, 0).astype(jnp.float32)
            return (y * jnp.cos(jnp.arange(64))).sum(), y

        def both(params: Any, x: Any) -> Any:
            gradient, y = jax.grad(total, has_aux=True)(x, params)
            return gradient, y

        return both

    return _error(_on(None, run("cudnn"), (params, x)), _on(None, run("xla"), (params, x)))


def _pytest(record: Record, directory: str) -> None:
    """Runs the repository's tests with one device, and counts them."""
    if record.left < 15:
        return record.skip("pytest", "no time left")
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    env = dict(os.environ, JAX_DEFAULT_MATMUL_PRECISION="highest", XLA_PYTHON_CLIENT_PREALLOCATE="false")
    env["VADAPTER_TEST_PLATFORM"] = "cuda" if jax.default_backend() == "gpu" else "cpu"
    files = ["tests/models/test_masks.py"] if record.small else FILES
    command = [sys.executable, "-m", "pytest", "-v", "--tb=line", "-p", "no:cacheprovider", "-k", LEFT_OUT, *files]
    if not record.small and _has("xdist"):
        command += ["-n", "10"]
    path = os.path.join(directory, "pytest.log")
    with record.figure("pytest", command=" ".join(command)) as entry:
        with open(path, "w") as log:
            try:
                settings: dict[str, Any] = {"cwd": root, "env": env, "stdout": log, "stderr": subprocess.STDOUT}
                entry["exit"] = subprocess.run(command, timeout=record.left - 3, **settings).returncode
            except subprocess.TimeoutExpired:
                entry["exit"] = "cut at the time limit"
        with open(path, errors="replace") as log:
            text = log.read()
        entry |= outcomes(text)
        entry["last_lines"] = text.splitlines()[-15:]


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def outcomes(text: str) -> dict[str, Any]:
    """Counts what `pytest -v` printed, with or without workers, up to wherever it was cut."""
    found: dict[str, set[str]] = {"PASSED": set(), "FAILED": set(), "ERROR": set(), "SKIPPED": set()}
    for line in text.splitlines():
        if match := re.match(r"(?:\[gw\d+\] \[ *\d+%\] )?(PASSED|FAILED|ERROR|SKIPPED) (tests/\S.*)", line):
            found[match[1]].add(re.sub(r" - .*", "", match[2]).strip())
        elif match := re.match(r"(tests/\S.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", line):
            found[match[2]].add(match[1])
    counts: dict[str, Any] = {kind.lower(): len(names) for kind, names in found.items()}
    return counts | {"failures": sorted(found["FAILED"] | found["ERROR"])}

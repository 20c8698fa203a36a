"""What does a frozen language model in int8 save, and what does it cost in accuracy?

python benchmarks/frozen_int8.py --variant=qwen3_0.6b --depth=8

Compares a decoder whose frozen kernels are int8 with the same in bf16: bytes of the weights, temporary memory of the
compiled gradient with respect to the decoder's input (what a frozen decoder behind a trained adapter computes), and the
error of the logits. Both errors are relative to f32 weights computed in f32; `rms` is of the whole, `max` is the
largest error over the largest logit. Weights are random: trained ones have outliers, which int8 rounds more coarsely.
"""

import argparse
import json
import platform


def measure(variant: str, depth: int, rows: int, length: int) -> dict:
    """Returns the figures of each way of keeping the weights."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import linen as nn

    from vadapter.base import quantization, trees
    from vadapter.models import stacks, variants
    from vadapter.models.decoder import Decoder
    from vadapter.training.storage import Storage

    segments = jnp.ones((rows, length), jnp.int32)
    positions = jnp.cumsum(segments, axis=1) - 1

    def predict(decoder, x):
        return decoder.logits(decoder(x, segments, positions)[0])

    def model(dtype: str) -> Decoder:
        return Decoder(variants.decoder(variant, depth=depth, dtype=dtype))

    config = model("float32").config
    x = jax.random.normal(jax.random.key(1), (rows, length, config.width))
    exact = {"decoder": nn.unbox(jax.jit(lambda key: model("float32").init(key, x, method=predict))(jax.random.key(0)))}
    exact["decoder"] = exact["decoder"]["params"]

    def logits(dtype: str, params: dict) -> np.ndarray:
        def run(params: dict) -> jax.Array:
            return model(dtype).apply({"params": params["decoder"]}, x, method=predict)  # pyright: ignore

        return np.asarray(jax.jit(run)(params))

    def temporary_bytes(params: dict) -> int | None:
        def total(x: jax.Array, params: dict) -> jax.Array:
            hidden, _ = model("bfloat16").apply({"params": params["decoder"]}, x, segments, positions)  # pyright: ignore
            return hidden.astype(jnp.float32).sum()

        memory = jax.jit(jax.grad(total)).lower(x, params).compile().memory_analysis()
        return memory.temp_size_in_bytes if memory else None

    right = logits("float32", exact)
    figures = {}
    for kind in ("bfloat16", "int8"):
        kept = Storage((), kind).keep_all(exact)
        flat = trees.flatten(kept)
        error = logits("bfloat16", kept) - right
        figures[kind] = {
            "kernel_bytes": sum(quantization.nbytes(leaf) for p, leaf in flat.items() if stacks.quantizes(p)),
            "weight_bytes": sum(quantization.nbytes(leaf) for leaf in flat.values()),
            "temporary_bytes": temporary_bytes(kept),
            "logits_rms_error": float(np.sqrt(np.mean(error**2) / np.mean(right**2))),
            "logits_max_error": float(np.abs(error).max() / np.abs(right).max()),
        }
    figures["int8"]["logits_rms_error_of_weights_alone"] = float(
        np.sqrt(np.mean((logits("float32", Storage((), "int8").keep_all(exact)) - right) ** 2) / np.mean(right**2))
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="qwen3_0.6b", help="a decoder of vadapter.models.variants")
    parser.add_argument("--depth", type=int, default=8, help="layers")
    parser.add_argument("--rows", type=int, default=1, help="rows of the batch")
    parser.add_argument("--length", type=int, default=16, help="tokens a row")
    args = parser.parse_args()
    import jax

    print(
        json.dumps(
            {
                "question": "memory and accuracy of frozen int8 weights, beside bf16",
                **vars(args),
                "figures": measure(args.variant, args.depth, args.rows, args.length),
                "device": f"{jax.devices()[0].device_kind}, {platform.machine()}",
                "jax": jax.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()

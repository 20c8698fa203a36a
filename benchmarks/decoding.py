"""What does each way to choose a text cost, in new tokens a second?

python benchmarks/decoding.py --rows=8 --prompt=32 --new_tokens=32

Greedy, sampling (temperature, top-k, top-p) and beam search of one model with random parameters, timed in turn (one of
each, round after round), so that the machine's mood falls on all alike. No row ends before the limit. A token counts
once, however many beams looked for it; reading the pictures and the prompts is included.
"""

import argparse
import json
import platform
import statistics
import time


def model_and_batch(args: argparse.Namespace):
    """Makes a VLM of the given sizes and rows of one picture and a prompt."""
    import numpy as np

    from vadapter.base.batch import Batch
    from vadapter.models.adapters import MlpConfig
    from vadapter.models.decoder import DecoderConfig
    from vadapter.models.vit import ViTConfig
    from vadapter.models.vlm import VLM, VLMConfig

    heads = args.width // 64
    encoder = ViTConfig(image_size=64, patch_size=16, width=128, depth=2, num_heads=2, mlp_dim=256, dtype=args.dtype)
    decoder = DecoderConfig(
        args.vocab_size, args.width, args.depth, heads, max(1, heads // 4), 64, 4 * args.width, dtype=args.dtype
    )
    config = VLMConfig(decoder, encoder, MlpConfig(dtype=args.dtype))
    visual = config.num_visual_tokens(1)
    rng = np.random.default_rng(0)
    shape = (args.rows, visual + args.prompt)
    index = np.tile(np.where(np.arange(shape[1]) < visual, np.arange(shape[1]), -1), (args.rows, 1)).astype(np.int32)
    batch = Batch(
        tokens=np.where(index < 0, rng.integers(0, args.vocab_size, shape), 0).astype(np.int32),
        segment_ids=np.ones(shape, np.int32),
        positions=np.tile(np.arange(shape[1], dtype=np.int32), (args.rows, 1)),
        media_index=index,
        media=rng.integers(0, 256, (args.rows, 1, 1, 64, 64, 3), np.uint8),
        target_positions=np.zeros((args.rows, 1), np.int32),
        target_ids=np.zeros((args.rows, 1), np.int32),
        target_weights=np.zeros((args.rows, 1), np.float32),
    )
    return VLM(config), batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch")
    parser.add_argument("--prompt", type=int, default=32, help="text tokens of a prompt, after 16 visual tokens")
    parser.add_argument("--new_tokens", type=int, default=32, help="tokens that are written")
    parser.add_argument("--width", type=int, default=256, help="of the decoder, a multiple of 64")
    parser.add_argument("--depth", type=int, default=4, help="layers of the decoder")
    parser.add_argument("--vocab_size", type=int, default=32_000)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    import jax

    from vadapter.generation.decoding import DecodingConfig, make_generate
    from vadapter.partitioning import Partitioner, init_params

    methods = {
        "greedy": DecodingConfig("greedy", args.new_tokens),
        "top-k, top-p": DecodingConfig("sample", args.new_tokens, temperature=0.7, top_k=50, top_p=0.9),
        "top-p": DecodingConfig("sample", args.new_tokens, temperature=0.7, top_p=0.9),
        f"beam {args.beams}": DecodingConfig("beam", args.new_tokens, beams=args.beams),
    }
    partitioner = Partitioner()
    model, batch = model_and_batch(args)
    params = init_params(model, batch, jax.random.key(0), partitioner)
    batch = partitioner.put_batch(batch)
    runs = {name: make_generate(model, partitioner, config, end_ids=()) for name, config in methods.items()}
    for run in runs.values():
        jax.block_until_ready(run(params, batch))  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(params, batch))
            seconds[name].append(time.perf_counter() - start)
    speed = {name: args.rows * args.new_tokens / statistics.median(times) for name, times in seconds.items()}
    print(
        json.dumps(
            {
                "question": "new tokens a second",
                "tokens_per_second": {name: round(x, 1) for name, x in speed.items()},
                "share_of_greedy": {name: round(x / speed["greedy"], 3) for name, x in speed.items()},
                "sizes": {key: value for key, value in vars(args).items() if key != "rounds"},
                "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}, {platform.machine()}",
                "jax": jax.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()

"""What does a new token cost: of each way to choose a text, and beside `generate` of transformers at equal texts?

python benchmarks/decode.py --rows=8 --prompt=32 --new_tokens=32
python benchmarks/decode.py --weights=downloads/SmolLM2-135M-Instruct --texts=32 --rows=8 --new_tokens=64
python benchmarks/decode.py --weights=downloads/SmolLM2-135M-Instruct --asks=quote --num_draft_tokens=6 --rows=1

Without weights: greedy, sampling (temperature, top-k, top-p) and beam search of one model with random parameters, timed
in turn (one of each, round after round), so that the machine's mood falls on all alike. No row ends before the limit. A
token counts once, however many beams looked for it; reading the pictures and the prompts is included.

With weights, a Hugging Face folder of a language model with its tokenizer: the same prompts and limit, greedy, f32, in
paired rounds: `ContinuousDecoder`, plain batches of ours, batches of `generate`, and the products with the weights
alone, the ceiling. Texts end where the model ends them; it fails if they differ. Needs the extra `parity`.
With `--num_draft_tokens` also with drafts by prompt lookup, which `generate` has for one row at a time.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import platform
import statistics
import time
from typing import Any

import paired
from gpu_stages import record


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


BESIDE = ("rounds", "weights", "texts", "clock", "asks", "num_draft_tokens")  # arguments of `beside_generate` alone
TOPICS = ("a cat", "the sea", "how bread is made", "rain", "the number seven", "a letter", "why the sky is blue")
ASKS = ("Say one word about {}.", "Describe {} in one short sentence.", "Write about {}, and do not be brief.")
PASSAGES = (
    "The ferry to the island leaves at nine in the morning and at four in the afternoon. On Sundays there is only one "
    "ferry, at ten. Tickets cost twelve euros for adults and six euros for children under fourteen.",
    "Mix two cups of flour with a pinch of salt. Add one cup of warm water and a spoon of oil, and knead the dough for "
    "ten minutes. Let it rest for half an hour under a towel before you roll it out.",
)
QUOTES = (
    "Repeat this text exactly:\n\n{}",
    "Summarize this text in one sentence:\n\n{}",
    "Correct the spelling of this text, and write the whole text again:\n\n{}",
)


def prompts(tokenizer, count: int, asks: str = "chat") -> list[list[int]]:
    """Chat prompts, where the tokenizer has a chat template: they ask for texts of different lengths, or for what is
    largely in the prompt."""
    templates, topics = (ASKS, TOPICS) if asks == "chat" else (QUOTES, PASSAGES)
    found = []
    for i in range(count):
        text = templates[i % len(templates)].format(topics[i % len(topics)])
        if tokenizer.chat_template:
            message = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            found.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        else:
            found.append(tokenizer(text)["input_ids"])
    return found


def text_row(ids: list[int], slots: int):
    """A row of text only that ends with its prompt."""
    import numpy as np

    from vadapter.base.batch import Batch

    def padded(values: Any, fill: int = 0) -> Any:
        return np.asarray([[*values, *[fill] * (slots - len(ids))]], np.int32)

    none: Any = np.zeros((1, 1), np.int32)
    media: Any = np.zeros((1, 0, 1, 1, 1, 3), np.uint8)
    return Batch(
        tokens=padded(ids),
        segment_ids=padded([1] * len(ids)),
        positions=padded(range(len(ids))),
        media_index=padded([-1] * len(ids), -1),
        media=media,
        target_positions=none,
        target_ids=none,
        target_weights=none.astype(np.float32),
    )


def weight_products(params: Any, rows: int, steps: int):
    """Returns a function that multiplies each matrix of the weights with some rows, and that as often as `steps`."""
    import jax
    import jax.numpy as jnp

    from vadapter.base import trees

    def as_matrices(params: Any) -> list[Any]:
        found = []
        for path, x in trees.flatten(params).items():
            for one in x if "layers" in path else [x]:
                if path.endswith("kernel"):
                    outputs = one.shape[-1:] if "out" in path else one.shape[1:]
                    found.append(one.reshape(-1, math.prod(outputs)))
                elif path.endswith("embedding"):
                    found.append(one.T)
        return found

    @jax.jit
    def run(matrices: list[Any]) -> Any:
        def step(_: Any, total: Any) -> Any:
            # Each product needs the one before, as those of a model do.
            for x in matrices:
                total = (jnp.zeros((rows, x.shape[0])) + total) @ x
                total = total.max(axis=1, keepdims=True) * 1e-3
            return total

        return jax.lax.fori_loop(0, steps, step, jnp.ones((rows, 1)))

    matrices = jax.block_until_ready(jax.jit(as_matrices)(params))
    return lambda: jax.block_until_ready(run(matrices))


def drafts_of(plain: Any, drafted: Any, tokens: int, times: int) -> dict:
    """Returns the calls of the language model without drafts and with them, and the tokens that a call gave."""
    calls = {"without": plain.calls // times, "with": drafted.calls // times}
    return {"calls": calls, "tokens_per_call": {name: round(tokens / x, 2) for name, x in calls.items()}}


def beside_generate(args: argparse.Namespace) -> dict:
    """Times ours and `generate` on the same weights and prompts."""
    import tempfile

    import jax
    import numpy as np
    import torch
    import transformers

    import vadapter
    from vadapter.base import trees
    from vadapter.generation.continuous import ContinuousDecoder
    from vadapter.generation.decoding import DecodingConfig, make_generate
    from vadapter.models.vlm import VLM, VLMConfig
    from vadapter.partitioning import Partitioner
    from vadapter.training.checkpoints import Checkpointer

    tokenizer = transformers.AutoTokenizer.from_pretrained(args.weights)
    peer = transformers.AutoModelForCausalLM.from_pretrained(args.weights, dtype=torch.float32).eval()
    ends = [tokenizer.eos_token_id]
    partitioner = Partitioner()
    with tempfile.TemporaryDirectory() as folder:
        imported = vadapter.import_weights(args.weights, f"{folder}/lm", part="decoder", dtype="f32")
        model = VLM(VLMConfig(dataclasses.replace(imported.config, dtype="float32")))  # type: ignore[arg-type]
        with Checkpointer(f"{folder}/lm", read_only=True) as checkpointer:
            shapes = {k: v for k, v in checkpointer.shapes(0).items() if k.startswith("decoder/")}
            params = jax.device_put(trees.unflatten(checkpointer.read(0, shapes)), partitioner.replicated)
    ids = prompts(tokenizer, args.texts, args.asks)
    slots = max(map(len, ids))
    rows = [text_row(x, slots) for x in ids]
    settings = DecodingConfig("greedy", args.new_tokens)
    decoder = ContinuousDecoder(model, params, settings, end_ids=ends, slots=slots, rows=args.rows)
    generate = make_generate(model, partitioner, settings, end_ids=ends)
    drafting = dataclasses.replace(settings, draft="prompt_lookup", num_draft_tokens=args.num_draft_tokens or 1)
    drafted = ContinuousDecoder(model, params, drafting, end_ids=ends, slots=slots, rows=args.rows)
    groups = [range(i, min(i + args.rows, args.texts)) for i in range(0, args.texts, args.rows)]

    def continuous(decoder: ContinuousDecoder = decoder):
        found = dict(decoder.texts((row, i) for i, row in enumerate(rows)))
        return [found[i] for i in range(args.texts)]

    def plain():
        found = []
        for group in groups:
            batch = jax.tree.map(lambda *x: np.concatenate(x), *(rows[i] for i in group))
            found += [[int(i) for i in row if i >= 0] for row in np.asarray(generate(params, batch))]
        return found

    @torch.inference_mode()
    def theirs(**settings: Any):
        found = []
        for group in groups:
            width = max(len(ids[i]) for i in group)
            tokens = torch.tensor([[ends[0]] * (width - len(ids[i])) + ids[i] for i in group])
            mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in group])
            out = peer.generate(
                input_ids=tokens,
                attention_mask=mask,
                do_sample=False,
                num_beams=1,
                max_new_tokens=args.new_tokens,
                eos_token_id=ends[0],
                pad_token_id=ends[0],
                **settings,
            )
            found += [list(itertools.takewhile(lambda i: i != ends[0], row[width:].tolist())) for row in out]
        return found

    ways = {"continuous": continuous, "batches": plain, "generate": theirs}
    if args.num_draft_tokens:
        ways["continuous, drafts"] = lambda: continuous(drafted)
        if args.rows == 1:
            ways["generate, drafts"] = lambda: theirs(prompt_lookup_num_tokens=args.num_draft_tokens)
    texts: dict[str, list[list[int]]] = {}

    def kept(name: str):
        return lambda: texts.update({name: ways[name]()})

    steps = math.ceil(args.texts / args.rows) * args.new_tokens  # of plain batches that go on to the limit
    arms = {name: kept(name) for name in ways} | {"products": weight_products(params, args.rows, steps)}
    seconds = paired.rounds(arms, args.rounds, time.process_time if args.clock == "cpu" else time.perf_counter)
    unequal = [name for name in ways if texts[name] != texts["generate"]]
    assert not unequal, f"texts of {unequal} differ from those of generate"
    tokens = sum(len(text) + (len(text) < args.new_tokens) for text in texts["generate"])
    lengths = [len(text) for text in texts["generate"]]
    return {
        "question": "times the speed of transformers' generate, greedy, f32, of paired rounds",
        "times_generate": {
            name: paired.ratio(seconds["generate"], seconds[name]) for name in ways if name != "generate"
        },
        **(
            {"drafts": drafts_of(decoder, drafted, tokens - args.texts, args.rounds + 1)}
            if args.num_draft_tokens
            else {}
        ),
        "share_of_the_ceiling": {name: paired.ratio(seconds["products"], seconds[name]) for name in ways},
        "ceiling": "one product of `rows` vectors with each weight a step, in as many steps as plain batches",
        "tokens_per_second": {name: round(tokens / x, 1) for name, x in paired.medians(seconds).items()},
        "equal_texts": args.texts,
        "lengths": {"prompt": [min(map(len, ids)), slots], "new": [min(lengths), max(lengths)], "tokens": tokens},
        "sizes": {
            "texts": args.texts,
            "asks": args.asks,
            "rows": args.rows,
            "new_tokens": args.new_tokens,
            "rounds": args.rounds,
        },
        "clock": args.clock,
        "device": f"{platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} CPUs",
        "date": time.strftime("%Y-%m-%d"),
        "versions": record.versions(),
    }


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
    parser.add_argument("--weights", metavar="DIR", help="a Hugging Face folder: measure beside `generate`")
    parser.add_argument("--texts", type=int, default=32, help="with --weights: prompts in all")
    parser.add_argument("--asks", default="chat", choices=["chat", "quote"], help="with --weights: what prompts ask")
    parser.add_argument("--num_draft_tokens", type=int, default=0, help="with --weights: also with drafts; 0 is not")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: seconds of the CPUs")
    args = parser.parse_args()
    if args.weights:
        print(json.dumps(beside_generate(args)))
        return
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
                "sizes": {k: v for k, v in vars(args).items() if k not in BESIDE},
                "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}, {platform.machine()}",
                "jax": jax.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()

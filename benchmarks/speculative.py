"""What do drafts of an adapter's own words save? Captions of pictures by a trained run, with and without.

python benchmarks/speculative.py --run=runs/words --media=photos --texts=64 --rows=1

Arms of paired rounds: no draft, prompt lookup, and the words of the adapter's tiny LM (`DecodingConfig.draft`). Texts
of all arms must be equal. Reading the pictures from disk is not counted; the encoder, the adapter and the prompts are.
"""

import argparse
import json
import os
import platform
import time

import paired
from gpu_stages import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of a run or bundle whose adapter writes words")
    parser.add_argument("--media", required=True, help="folder of pictures")
    parser.add_argument("--question", help="asked of each picture; without it they are captioned")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1, help="texts at a time")
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--num_draft_tokens", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: seconds of the CPUs")
    args = parser.parse_args()
    import vadapter
    from vadapter.cli.infer import files_of
    from vadapter.generation.config import DecodingConfig

    model = vadapter.load(args.run)
    prompts = [model.request(path, args.question) for path in files_of([args.media])[: args.texts]]
    kinds = {"none": DecodingConfig(max_new_tokens=args.new_tokens)}
    for draft in ("prompt_lookup", "words"):
        for k in args.num_draft_tokens:
            kinds[f"{draft}, {k}"] = DecodingConfig(max_new_tokens=args.new_tokens, draft=draft, num_draft_tokens=k)
    decoders = {name: model.continuous(config, args.rows) for name, config in kinds.items()}
    texts: dict[str, dict[int, list[int]]] = {}

    def arm(name: str):
        return lambda: texts.update({name: dict(decoders[name].texts((x, i) for i, x in enumerate(prompts)))})

    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    seconds = paired.rounds({name: arm(name) for name in kinds}, args.rounds, clock)
    assert all(found == texts["none"] for found in texts.values()), "texts differ with drafts"
    tokens = sum(map(len, texts["none"].values()))
    calls = {name: decoder.calls // (args.rounds + 1) for name, decoder in decoders.items()}
    print(
        json.dumps(
            {
                "question": "times the speed without drafts, greedy, of paired rounds",
                "times_no_draft": {name: paired.ratio(seconds["none"], x) for name, x in seconds.items()},
                "seconds": paired.medians(seconds),
                "calls": calls,
                "times_fewer_calls": {name: round(calls["none"] / x, 2) for name, x in calls.items()},
                "equal_texts": len(prompts),
                "tokens": tokens,
                "sizes": {"texts": len(prompts), "rows": args.rows, "new_tokens": args.new_tokens},
                "question_asked": args.question,
                "rounds": args.rounds,
                "clock": args.clock,
                "device": f"{platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} CPUs",
                "date": time.strftime("%Y-%m-%d"),
                "versions": record.versions(),
            }
        )
    )


if __name__ == "__main__":
    main()

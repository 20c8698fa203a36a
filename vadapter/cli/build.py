r"""Writes splits of a benchmark from its official files as ArrayRecord files, which vadapter reads at random.

vadapter build --dataset=vqav2 --manual_dir=downloads/coco --data_dir=benchmark_data
vadapter build --dataset=coco_karpathy --split=train --split=test --manual_dir=downloads/coco --data_dir=benchmark_data

data/README.md lists the benchmarks, where their files come from, and the folders that manual_dir must have. An
evaluation builds what it needs by itself; this is for large splits, and for Apache Beam (pip install 'vadapter[beam]'),
which shares the work over processes or machines. Both folders may be in a bucket:

vadapter build --dataset=vqav2 --split=train --manual_dir=gs://bucket/coco --data_dir=gs://bucket/data --beam \
  --beam_options=runner=DataflowRunner,project=my-project,region=us-central1,temp_location=gs://bucket/temp,\
sdk_container_image=IMAGE
"""

import argparse

from vadapter.base import terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--dataset", required=True, metavar="NAME", help="a benchmark of data/README.md")
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="SPLIT",
        help="a split of it; may be repeated (default: the one that papers report)",
    )
    parser.add_argument("--manual_dir", required=True, metavar="DIR", help="the official files and the media")
    parser.add_argument("--data_dir", required=True, metavar="DIR", help="where data sets are written")
    parser.add_argument(
        "--max_bad_share",
        type=float,
        default=0.01,
        metavar="X",
        help="share of the rows that may lack their file (default: %(default)s)",
    )
    parser.add_argument("--beam", action="store_true", help="write with Apache Beam")
    parser.add_argument(
        "--beam_options", default="", metavar="NAME=VALUE,...", help="options of the Beam pipeline, such as its runner"
    )
    parser.add_argument(
        "--no_examples",
        action="store_true",
        help="leave out the text of the training questions, which prompts take their examples from",
    )


def run(args: argparse.Namespace) -> None:
    """Builds the splits and prints what they hold."""
    from vadapter.benchmarks import builder, table

    benchmark = table.benchmark(args.dataset)
    wanted = [(split, False) for split in args.split or [benchmark.evaluated]]
    if benchmark.question and "train" in benchmark.splits and not args.no_examples:
        wanted.append(("train", True))
    options = tuple(f"--{option}" for option in args.beam_options.split(",") if option)
    for split, text_only in wanted:
        made = builder.prepare(
            *(args.data_dir, args.dataset, split, args.manual_dir),
            text_only=text_only,
            max_bad_share=args.max_bad_share,
            beam=args.beam or bool(options),
            beam_options=options,
        )
        counts = made.info.metadata or {}
        left_out = f", {len(counts['left_out'])} left out" if counts.get("left_out") else ""
        kind = "questions for examples" if text_only else "rows"
        print(
            f"{args.dataset} {split}: {counts.get('rows', '?')} {kind}{left_out}, in {terminal.line(made.data_path)}",
            flush=True,
        )

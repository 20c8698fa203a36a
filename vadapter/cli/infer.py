"""Captions an image or a video, or answers a question about it.

vadapter infer --model_dir=runs/queries --media=photo.jpg
vadapter infer --model_dir=runs/queries --media=clip.mp4 --question='what moves ?'
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    from vadapter.cli.config import add_gin_arguments

    parser.add_argument("--model_dir", required=True, metavar="DIR", help="folder of a trained run")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: the latest)")
    parser.add_argument(
        "--media", required=True, action="append", metavar="FILE", help="JPEG, PNG, WebP or video; may be repeated"
    )
    parser.add_argument("--question", metavar="TEXT", help="asks this; without it the file is captioned")
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="a prompt of data/prompts by name, or a template with <media> and, with --question, <question>",
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=32, metavar="N", help="longest answer in tokens (default: %(default)s)"
    )
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Prints what the model says of each file."""
    from vadapter.cli import experiment, restored
    from vadapter.data.requests import request
    from vadapter.errors import UserError
    from vadapter.evaluation.decoding import make_generate
    from vadapter.models.vlm import VLM, VLMConfig

    if args.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens is {args.max_new_tokens}; expected 1 or more.")
    trained = restored.load(args)
    parts = trained.parts
    model, config = parts.model, parts.experiment.model
    if not isinstance(model, VLM) or not isinstance(config, VLMConfig) or config.encoder is None:
        raise UserError(
            f"{args.model_dir} holds a model that does not read images and write text. Give a run of stage 1 or 2."
        )
    vocabulary = parts.loader.vocabulary
    generate = make_generate(model, parts.partitioner, max_new_tokens=args.max_new_tokens, eos_id=parts.loader.eos_id)
    data = experiment.for_model(parts.experiment.data, config)
    prompt = args.prompt or ("image_question" if args.question else "caption")
    for path in args.media:
        batch = request(path, data, vocabulary, prompt, args.question, parts.partitioner.batch_ways)
        ids = generate(trained.params, parts.partitioner.put_batch(batch))
        text = vocabulary.decode([int(i) for i in ids[0] if i]).strip()
        print(f"{path}: {text}" if len(args.media) > 1 else text)

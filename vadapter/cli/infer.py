"""Captions an image or a video, or answers a question about it.

vadapter infer --model_dir=runs/queries --media=photo.jpg
vadapter infer --bundle=owl --media=clip.mp4 --question='what moves ?'
vadapter infer --bundle=owl --encoder=weights/siglip --decoder=weights/gemma --media=photo.jpg

Needs neither the gin files nor the data that the model was trained with.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    from vadapter.cli.arguments import add_model_arguments

    add_model_arguments(parser)
    parser.add_argument(
        "--media", required=True, action="append", metavar="FILE", help="JPEG, PNG, WebP or video; may be repeated"
    )
    parser.add_argument("--question", metavar="TEXT", help="asks this; without it the file is captioned")
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="a prompt of data/prompts by name, or a template with <media> and, with --question, <question> "
        "(default: the one that the model was trained on)",
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=32, metavar="N", help="longest answer in tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--decoding",
        dest="method",
        choices=("greedy", "sample", "beam"),
        default="greedy",
        help="how the text is chosen (default: %(default)s)",
    )
    parser.add_argument("--beams", type=int, default=4, metavar="N", help="of beam (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of sample (default: %(default)s)")
    parser.add_argument("--top_p", type=float, default=1.0, metavar="P", help="of sample (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of sample (default: %(default)s)")
    parser.add_argument(
        "--mesh",
        type=_sizes,
        default=(-1, 1, 1),
        metavar="D,F,T",
        help="devices along data, fsdp and tensor; one may be -1, the rest (default: -1,1,1)",
    )


def _sizes(text: str) -> tuple[int, ...]:
    data, fsdp, tensor = (int(word) for word in text.split(","))
    return data, fsdp, tensor


def run(args: argparse.Namespace) -> None:
    """Prints what the model says of each file."""
    import dataclasses

    import jax

    from vadapter.cli import arguments
    from vadapter.data.reading import video
    from vadapter.data.rows import memory
    from vadapter.generation.decoding import DecodingConfig, make_generate
    from vadapter.partitioning import MeshConfig, Partitioner, hosts, make_mesh
    from vadapter.partitioning.gather import local_rows
    from vadapter.runs.load import eos_id

    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(DecodingConfig) if hasattr(args, f.name)}
    decoding = DecodingConfig(**given)
    hosts.start()
    partitioner = Partitioner(make_mesh(MeshConfig(*args.mesh)))
    trained = arguments.trained(args, partitioner)
    trained.check_speaks()
    vocabulary, text = trained.vocabulary, trained.description.text
    assert vocabulary is not None and text is not None
    generate = make_generate(trained.model, partitioner, decoding, eos_id=eos_id(vocabulary))
    for path in args.media:
        prompt = args.prompt or trained.prompt(bool(args.question), video.is_video(path))
        rows = partitioner.batch_ways // partitioner.host_share[1]  # copies, one for each part of the batch here
        row = {"vocabulary": vocabulary, "lengths": text.lengths, "sizes": trained.sizes}
        resize = trained.description.resize
        batch = memory.batch([path], prompt, None, args.question, **row, resize=resize, copies=rows)
        ids = generate(trained.params, partitioner.put_batch(batch))
        text = vocabulary.decode(local_rows(ids)[0].tolist()).strip()
        if jax.process_index() == 0:
            print(f"{path}: {text}" if len(args.media) > 1 else text)

"""What all runs share: the pack on the device, and the compiled programs."""

import argparse
import dataclasses
import json
import platform
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import models
import numpy as np
import programs
import rows as rows_lib
from clock import say

from vadapter.base import trees
from vadapter.partitioning import MeshConfig, Partitioner, make_mesh
from vadapter.training.state import TrainState

CHUNK = 100  # pictures of a part of an evaluation; divides the sets


@dataclasses.dataclass
class Bench:
    """What all runs share.

    Attributes:
        backbones, pictures, pixels, index, texts, sizes: the pack and the experiment's shapes.
        built: the kinds of adapters, by name.
        hidden: compiled `models.hidden_states`.
        sets: name and pictures of each evaluation set, as many chunks as `whole` has.
        whole: pictures of an evaluation, [chunks, chunk].
        tiny: the pretrained tiny LM, f32.
        table: scaled embeddings of the pieces that the regression wants, f32 [positions, E].
        held_out: positions of the regression that measure it.
        out: where results go.
        evaluate: steps after which runs are evaluated, beside the last; None is a few on the way.
        facts: of machine and experiment, for each line.
    """

    backbones: models.Backbones
    pictures: rows_lib.Pictures
    pixels: jax.Array
    index: Mapping[str, Any]
    texts: Mapping[str, np.ndarray]
    sizes: programs.Sizes
    partitioner: Partitioner
    out: Path
    evaluate: Sequence[int] | None
    facts: dict[str, Any]
    sets: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    built: dict[str, programs.Kind] = dataclasses.field(default_factory=dict)
    tiny: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    hidden: Any = None
    table: Any = None
    held_out: Any = None
    whole: Any = None

    def write(self, line: Mapping[str, Any]) -> None:
        with (self.out / "results.jsonl").open("a") as file:
            file.write(json.dumps({**line, **self.facts}, separators=(",", ":")) + "\n")


def set_up(args: argparse.Namespace) -> Bench:
    """Reads the pack, puts it on the device and compiles everything."""
    index = json.loads((args.data / "index.json").read_text())
    backbones = models.load_backbones(args.data, index, args.dtype)
    say("weights read")
    pictures = rows_lib.load_pictures(args.data)
    sizes = programs.Sizes(args.batch, CHUNK // args.accumulate, accumulate=args.accumulate)
    if args.small:
        sizes = programs.Sizes(1, 1, 2)
    partitioner = Partitioner(make_mesh(MeshConfig(), jax.devices()[:1]))
    device = jax.devices()[0]
    train = len(pictures.sets["train"])
    if args.pictures is not None and args.pictures > train:
        print(f"--pictures is {args.pictures:,}, and the training set has {train:,}: give fewer", file=sys.stderr)
        raise SystemExit(2)
    facts = {
        "batch": sizes.batch,
        "image_size": models.IMAGE_SIZE,
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "small": args.small,
        "dtype": args.dtype,
        "stage2_pictures": train if args.pictures is None else args.pictures,
    }
    texts = {name: x for name, x in np.load(args.data / "texts.npz").items()}
    if args.small:
        texts = _few(texts, 20)
    texts["tokens"] = np.pad(texts["tokens"], ((0, -len(texts["tokens"]) % 20), (0, 0)))
    put = partitioner.replicated
    pixels = jax.device_put(pictures.pixels, put)
    bench = Bench(backbones, pictures, pixels, index, texts, sizes, partitioner, args.out, args.evaluate, facts)
    for name in rows_lib.SETS:
        bench.sets[name] = pictures.sets[name][: sizes.chunk] if args.small else pictures.sets[name]
    bench.whole = np.concatenate(list(bench.sets.values())).reshape(-1, sizes.chunk)
    compile_all(bench, models.kinds_of(args.arms))
    say(f"compiled {len(bench.built)} kinds of adapters")
    return bench


def _few(texts: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    keep = texts["text"] < count
    return {"tokens": texts["tokens"][:count], **{n: texts[n][keep] for n in ("text", "slot", "piece")}}


def compile_all(bench: Bench, kinds: Collection[str]) -> None:
    """Puts the backbones on the device and compiles the programs of the given kinds of adapters."""
    put = bench.partitioner.replicated
    on_device = {
        part: {p: jax.device_put(x, put) for p, x in bench.backbones.params[part].items()}
        for part in ("encoder", "tiny", "large")
    }
    bench.tiny = {p: x.astype(jnp.float32) for p, x in on_device["tiny"].items()}
    large = on_device["large"]
    scale = jnp.asarray(bench.backbones.large.width**0.5, jnp.bfloat16)  # rounded, as the decoder does
    bench.table = np.asarray((large["embedder/embedding"][bench.texts["piece"]] * scale).astype(jnp.float32))
    bench.held_out = bench.texts["text"] % 10 == 0
    encoder = {f"encoder/{p}": x for p, x in on_device["encoder"].items()}
    decoder = {f"decoder/{p}": x for p, x in large.items()}
    compiler = programs.Compiler(bench.partitioner)
    for name in kinds:
        model = models.model_of(name, bench.backbones, bench.index["prompts"]["smollm2"])
        frozen = encoder if name == "stage1" else {**encoder, **decoder}
        bench.built[name] = programs.build(
            name,
            model,
            frozen,
            bench.pictures,
            bench.pixels,
            bench.index,
            bench.sizes,
            len(bench.whole),
            compiler,
            bench.partitioner,
        )

    def hidden(tiny: Any, texts: Any) -> Any:
        return models.hidden_states(bench.backbones.tiny, tiny, texts, 20)

    texts = {n: bench.texts[n] for n in ("tokens", "text", "slot")}
    compiler.add(bench, "hidden", hidden, trees.unflatten(bench.tiny), texts)
    say("lowered; compiling")
    failed = [kind.name for kind in compiler.finish() if kind is not bench]
    bench.built = {name: kind for name, kind in bench.built.items() if name not in failed}
    if bench.facts["small"] and failed:
        raise RuntimeError(f"not compiled: {failed}")


def regression(bench: Bench, tiny: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Fits the map from a tiny LM's hidden states to the large LM's embeddings."""
    texts = {n: jax.device_put(bench.texts[n], bench.partitioner.replicated) for n in ("tokens", "text", "slot")}
    states = np.asarray(bench.hidden(trees.unflatten(dict(tiny)), texts))
    return models.ridge(states, bench.table, bench.held_out)


def initial_state(bench: Bench, kind: programs.Kind, own: Mapping[str, Any], rate: float, steps: int) -> Any:
    """Returns the state of step 0 and the frozen tree."""
    put = bench.partitioner.replicated
    params, opt_state = kind.begin(trees.unflatten({p: jax.device_put(own[p], put) for p in kind.trained}))
    opt_state = {
        **opt_state,
        "peak": jax.device_put(jnp.float32(rate), put),
        "steps": jax.device_put(jnp.float32(steps), put),
    }
    rest = {p: x.astype(jnp.bfloat16) for p, x in own.items() if p not in kind.trained}
    return TrainState(jax.device_put(jnp.int32(0), put), params, opt_state), trees.unflatten({**kind.frozen, **rest})

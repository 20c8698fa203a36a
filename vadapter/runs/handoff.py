"""The hand-off to stage 2: first values of an adapter that fit the language models on both of its sides.

An adapter that ends in a random map gives the decoder vectors that are no words of it. A pretrained tiny LM makes this
worse: two thirds of the energy of its hidden states is one constant vector, so behind a random map all soft tokens are
nearly the same large vector. Three things cost no step of training:

    the last map     starts as a ridge regression from what the tiny LM has read of a text to the decoder's embedding of
                     what comes next; for adapters without an LM, as a random map whose soft tokens are as large as the
                     decoder's embeddings
    the prompt       what stood before and after the visual tokens in stage 1, start token and prompt, stands there
                     again, as learned vectors
    the queries      may start at the token after which the LM learned to answer

All of it is computed at the start of a run and is the same for the same sources, data and settings. A run of one
process keeps the fitted map in the folder `handoff` of a local source, and the next such run reads it there. Source:
the first runs on real models (docs/open.md); the paper has no such step.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vadapter.base import files, fingerprints, trees
from vadapter.base.array_types import Array
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote
from vadapter.data import mixture_description
from vadapter.data.order.config import LoaderConfig
from vadapter.data.order.loader import Loader
from vadapter.models import layers
from vadapter.models.adapters import LMAdapterConfig
from vadapter.models.decoder import Decoder
from vadapter.models.serialization import to_json
from vadapter.runs import ridge, text_pairs, tiny_lm
from vadapter.runs.batches import for_model
from vadapter.runs.tiny_lm import TinyLM
from vadapter.training.initialize import print_once
from vadapter.training.program import Program
from vadapter.training.sources import Reference

Output = Literal["random", "scale", "regression", "auto"]
Prefix = Literal["random", "prompt"]
Queries = Literal["kept", "answer"]
RECORD = "handoff.json"
_FROM_TEXT = ("regression", "auto")
_CACHE = "handoff"
_HELD_OUT = 20  # every so many-th text measures the fit only
_TEXTS, _STEP = 32, 8  # texts that are read at a time, at least; their lengths are rounded up to a multiple
_BATCHES = 10  # of training data that are looked through for one with pictures and text
_NOISE = 0.1  # of queries that start at one token, so that they can part


@dataclasses.dataclass(frozen=True)
class Handoff:
    """How an adapter starts. See the head of `vadapter.runs.handoff`.

    Attributes:
        source: MODEL_DIR of stage 1 or one of its `checkpoint_<step>` folders, or the imported folder of a language
            model that stands in the adapter as it was published; needed by an adapter with a tiny LM.
        output: the last map: `random`; `scale`, random with soft tokens as large as the decoder's embeddings; or
            `regression`, from the tiny LM's hidden states to the decoder's embeddings of what comes next; or `auto`,
            the regression where the texts give enough positions, else `scale`.
        prefix: the learned vectors before and after the visual tokens (`LMAdapterConfig.num_prefix`, `num_suffix`):
            `random`, or `prompt`, the embeddings of what stood there in stage 1.
        queries: `kept`, as `LMAdapterConfig.query_init` says; or `answer`, near the embedding of the prompt's last
            token, after which the tiny LM learned to answer.
        texts: a text file, one text a line, that is read where the training data's texts do not give enough positions.
        positions: most positions of text that the regression is fitted on.
        penalty: of the ridge regression, on the squares of the kernel.

    Raises:
        UserError: a choice is unknown, or a number is too small.
    """

    source: str | None = None
    output: Output = "auto"
    prefix: Prefix = "prompt"
    queries: Queries = "kept"
    texts: str | None = None
    positions: int = 50_000
    penalty: float = 10.0

    def __post_init__(self):
        layers.known("Handoff.output", self.output, get_args(Output))
        layers.known("Handoff.prefix", self.prefix, get_args(Prefix))
        layers.known("Handoff.queries", self.queries, get_args(Queries))
        if self.positions < 1 or self.penalty <= 0:
            raise UserError(
                f"Handoff: expected positions of 1 or more and a penalty above 0; found positions={self.positions} and "
                f"penalty={self.penalty}."
            )


def check(handoff: Handoff, adapter: Any, mixture: str, trained: Collection[str]) -> TinyLM | None:
    """Finds out whether an adapter can have what is asked for, before weights are read.

    Args:
        handoff: what is asked for.
        adapter: configuration of the adapter.
        mixture: the registered task or mixture that the run trains on.
        trained: paths of the parameters that the run trains.

    Returns:
        The tiny LM, where something of it is needed.

    Raises:
        UserError: the adapter cannot have it; a parameter that it sets is frozen, so that the run would not keep it;
            the prefix has another length than stage 1's prompt; or the source or its tokeniser is missing.
    """
    kind, output = type(adapter).__name__, handoff.output
    lm = adapter if isinstance(adapter, LMAdapterConfig) else None
    if output == "regression" and lm is None:
        raise UserError(
            f"Handoff.output 'regression' maps the outputs of a tiny LM; the adapter is a {kind}. Choose 'scale'."
        )
    if output != "random" and not getattr(adapter, "output_map", None):
        raise UserError(
            f"Handoff.output {output!r} needs to know the adapter's last map; {kind} has no `output_map`. Add it "
            "(vadapter.models.configuration.AdapterConfig), or choose 'random'."
        )
    if handoff.queries == "answer" and not (lm and lm.num_queries):
        raise UserError(f"Handoff.queries 'answer' needs an adapter with appended queries; the adapter is a {kind}.")
    prompt = _prompt_parts(lm) if lm is not None and handoff.prefix == "prompt" else {}
    sets = {**{f"adapter/{part}": True for part in prompt}, "adapter/queries": handoff.queries == "answer"}
    if output != "random":
        sets[f"adapter/{adapter.output_map}/kernel"] = True
    if frozen := [path for path, wanted in sets.items() if wanted and path not in trained]:
        raise UserError(
            f"The hand-off gives {frozen[0]} its first value, and the run freezes it: frozen parameters are not saved "
            "but read from their source again. Train it (TRAINABLE), or leave it out of the hand-off."
        )
    if lm is None or not (output in _FROM_TEXT or handoff.queries == "answer" or prompt):
        return None
    if not handoff.source:
        raise UserError("Handoff.source is not given; expected the MODEL_DIR of stage 1, or an imported folder.")
    own = mixture_description.describe(mixture).get("prompts") or {}
    tiny = tiny_lm.find(handoff.source, tiny_lm.caption_template(own) if own else "caption")
    for part, (count, ids, side) in prompt.items():
        if count != len(ids(tiny)):
            said = [tiny.vocabulary.written(i)[0] for i in ids(tiny)]
            raise UserError(
                f"LMAdapterConfig.num_{part} is {count}; in {tiny.folder} {len(said)} tokens stood {side} the "
                f"visual tokens: {said}. Set num_{part}={len(said)} (NUM_{part.upper()}), or 0 for none."
            )
    return tiny


def _prompt_parts(lm: LMAdapterConfig) -> dict[str, tuple[int, Callable[[TinyLM], list[int]], str]]:
    """(length, which ids of the prompt, on which side of the visual tokens) of the learned vectors that there are."""
    parts = {
        "prefix": (lm.num_prefix, lambda tiny: tiny.before, "before"),
        "suffix": (lm.num_suffix, lambda tiny: tiny.after, "after"),
    }
    return {name: part for name, part in parts.items() if part[0]}


def start(
    handoff: Handoff,
    params: trees.Tree,
    program: Program,
    data: LoaderConfig,
    batches: Callable[[], Iterator[Any]],
    *,
    references: Sequence[Reference],
    model_dir: str,
    say: Callable[[str], None] = print_once,
) -> dict[str, Any]:
    """Gives an adapter its first values.

    Args:
        handoff: what is asked for.
        params: all parameters of the run, on the device, as they are kept.
        program: of the run.
        data: what the run trains on.
        batches: gives this host's batches of training.
        references: what the run took from its sources.
        model_dir: folder of the run; `handoff.json` with the figures is written there.
        say: is given a line on what was done.

    Returns:
        All parameters.

    Raises:
        UserError: as `check`; or there is too little text.
    """
    work = _Work(handoff, dict(trees.flatten(params)), program, data, references)
    facts = work.run(batches, say)
    if jax.process_index() == 0:
        epath.Path(model_dir).mkdir(parents=True, exist_ok=True)
        files.write_json(epath.Path(model_dir) / RECORD, facts, indent=1)
    say(f"Hand-off: {_sentence(facts)}.")
    return trees.unflatten(work.flat)


@dataclasses.dataclass
class _Work:
    """One hand-off. `flat` has all parameters by path; new values take their places in it."""

    handoff: Handoff
    flat: dict[str, Any]
    program: Program
    data: LoaderConfig
    references: Sequence[Reference]

    def __post_init__(self):
        self.model: Any = self.program.model
        self.adapter = self.model.config.adapter
        self.tiny = check(self.handoff, self.adapter, self.data.mixture, self.program.storage.trained)

    def run(self, batches: Callable[[], Iterator[Any]], say: Callable[[str], None]) -> dict[str, Any]:
        """Sets the new values and returns the figures for the record."""
        facts: dict[str, Any] = {}
        if self.tiny:
            facts |= self._from_tiny_lm(self.tiny, say)
        output = self.handoff.output
        if output == "scale" or (output == "auto" and "r2" not in facts):
            facts |= {"output": "scale", "scale": self._scale(batches)}
        return {"output": output, **facts}

    def _set(self, path: str, value: np.ndarray) -> None:
        self.flat[path] = self.program.storage.keep(path, np.asarray(value, np.float32))

    def _from_tiny_lm(self, tiny: TinyLM, say: Callable[[str], None]) -> dict[str, Any]:
        table, facts = tiny_lm.read_table(tiny), {}
        if self.handoff.prefix == "prompt":
            for part, (_, ids, _) in _prompt_parts(self.adapter).items():
                self._set(f"adapter/{part}", self._embedded(table, ids(tiny)))
                facts[part] = [tiny.vocabulary.written(i)[0] for i in ids(tiny)]
        if self.handoff.queries == "answer":
            self._set("adapter/queries", self._queries(self._embedded(table, [tiny.last])[0]))
            facts["queries"] = tiny.vocabulary.written(tiny.last)[0]
        if self.handoff.output in _FROM_TEXT and (pairs := self._pairs(tiny, table.shape[1], say)):
            kernel, bias, fit = self._regression(tiny, table, pairs, say)
            self._set(f"adapter/{self.adapter.output_map}/kernel", kernel)
            self._set(f"adapter/{self.adapter.output_map}/bias", bias)
            facts |= {"output": "regression", **fit}
        return facts

    # What the tiny LM reads.

    def _decoder(self, rows: int) -> Decoder:
        """The tiny LM, with a table of so many rows."""
        return Decoder(dataclasses.replace(self.adapter.lm, vocab_size=rows, tied_head=True, causal=True))

    def _lm_params(self, table: np.ndarray) -> dict[str, Any]:
        prefix = "adapter/lm/"
        own = {path.removeprefix(prefix): x for path, x in self.flat.items() if path.startswith(prefix)}
        own = {path: x for path, x in own.items() if not path.startswith(("embedder/", "head/"))}
        put = jax.make_array_from_callback(table.shape, self.program.partitioner.replicated, lambda index: table[index])
        return trees.unflatten({**own, "embedder/embedding": put})

    def _embedded(self, table: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        """Returns what the tiny LM's layers see of some ids, f32 [n, D]."""
        rows = table[np.asarray(ids)]
        model = self._decoder(len(rows))
        read = lambda own: model.apply({"params": own}, jnp.arange(len(rows))[None], method="embed")[0]  # noqa: E731
        run = jax.jit(lambda own: read(own).astype(jnp.float32), out_shardings=self.program.partitioner.replicated)
        return np.asarray(run(trees.unflatten({"embedder/embedding": rows})))

    def _queries(self, at: np.ndarray) -> np.ndarray:
        queries = np.asarray(_replicated(self.flat["adapter/queries"], self.program), np.float32)
        return at + _NOISE * queries * _rms(at) / max(_rms(queries), 1e-12)

    # The last map.

    def _pairs(self, tiny: TinyLM, width: int, say: Callable[[str], None]) -> text_pairs.Pairs | None:
        """Positions of text; None where there are too few and the random map can do."""
        speaker = Loader(self.data, for_model(self.model.config)).vocabulary
        pairs = text_pairs.pair(self._texts(), tiny.vocabulary, speaker, self.handoff.positions)
        fitted = int((pairs.text % _HELD_OUT != 0).sum())
        if 2 * width <= fitted < len(pairs.text):
            return pairs
        lack = (
            f"The hand-off fits a map of {width} inputs on positions of text; the data have {fitted} where "
            f"both tokenisers begin a piece, and {2 * width} are needed. Give a file with more text "
            "(Handoff.texts, one text a line)"
        )
        if self.handoff.output == "regression":
            raise UserError(f"{lack}, or set Handoff.output='scale'.")
        say(f"{lack}. The last map stays random.")
        return None

    def _regression(
        self, tiny: TinyLM, table: np.ndarray, pairs: text_pairs.Pairs, say: Callable[[str], None]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        key = self._key(tiny, table, pairs)
        cache = None if is_remote(tiny.folder) else os.path.join(tiny.folder, _CACHE, f"{key[:16]}.npz")
        if found := ridge.load(cache):
            return found
        say(f"Hand-off: fitting the last map on {len(pairs.slot)} positions of text.")
        wanted, index = self._decoder_embeddings(pairs.piece)
        fit = ridge.RidgeFit(table.shape[1], wanted.shape[1], self.handoff.penalty)
        for states, at in self._states(table, pairs):
            held_out = pairs.text[at] % _HELD_OUT == 0
            fit.add(states, wanted[index[at]], held_out)
        kernel, bias, facts = ridge.of_first_process(*fit.solve())
        ridge.store(cache, kernel, bias, facts)
        return kernel, bias, facts

    def _texts(self) -> Iterator[str]:
        yield from text_pairs.texts_of(self.data, for_model(self.model.config))
        if self.handoff.texts:
            yield from text_pairs.lines_of(self.handoff.texts)

    def _key(self, tiny: TinyLM, table: np.ndarray, pairs: text_pairs.Pairs) -> str:
        """Hash of all that the regression depends on."""
        taken = sorted(reference.sha256 for reference in self.references)
        storage = self.program.storage
        kept = [storage.frozen_dtype, any(path.startswith("adapter/lm/") for path in storage.trained)]
        parts = [kept, to_json(self.adapter.lm), to_json(self.model.config.decoder), taken, self.handoff.penalty]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        for array in (table, pairs.tokens, pairs.text, pairs.slot, pairs.piece):
            digest.update(fingerprints.of_array(array).sha256.encode())
        return digest.hexdigest()

    def _decoder_embeddings(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns embeddings of the different ids, as the decoder's layers see them, f32 [U, D]; and each id's row."""
        unique, index = np.unique(ids, return_inverse=True)
        rows = self._rows
        padded = np.resize(unique, (rows, -(-len(unique) // rows))).astype(np.int32)
        embed = lambda params, ids: self.model.apply(  # noqa: E731
            {"params": params}, ids, method=lambda module, ids: module.decoder.embed(ids)
        )
        with self.program.partitioner.activate():
            run = jax.jit(embed, out_shardings=self.program.partitioner.replicated)
            found = run(
                trees.unflatten({p: x for p, x in self.flat.items() if p.startswith("decoder/embedder")}), padded
            )
        return np.asarray(found, np.float32).reshape(padded.size, -1)[: len(unique)], index

    def _states(self, table: np.ndarray, pairs: text_pairs.Pairs) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the tiny LM's final hidden states at the positions, f32 [n, D], and which positions they are."""
        used, tokens = np.unique(pairs.tokens, return_inverse=True)
        tokens = tokens.reshape(pairs.tokens.shape).astype(np.int32)
        model: Any = self._decoder(len(used))
        own = self._lm_params(table[used])

        def read(module: Decoder, tokens: Array) -> Array:
            slots = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
            return module(module.embed(tokens), jnp.ones_like(tokens), slots)[0]

        apply = lambda own, tokens: model.apply({"params": own}, tokens, method=read).astype(jnp.float32)  # noqa: E731
        # Rows of like lengths together, so that little of what is computed is padding.
        lengths = np.zeros(len(tokens), np.int32)
        np.maximum.at(lengths, pairs.text, pairs.slot + 1)
        order, rows = np.argsort(lengths, kind="stable"), self._rows
        with self.program.partitioner.activate():
            run = jax.jit(apply, out_shardings=self.program.partitioner.replicated)
            for first in range(0, len(tokens), rows):
                chosen = order[first : first + rows]
                length = -(-int(lengths[chosen].max()) // _STEP) * _STEP
                chunk = np.zeros((rows, length), np.int32)
                have = min(length, pairs.tokens.shape[1])
                chunk[: len(chosen), :have] = tokens[chosen, :have]
                states = np.asarray(run(own, chunk))
                place = np.full(len(tokens), -1)
                place[chosen] = np.arange(len(chosen))
                at = np.flatnonzero(place[pairs.text] >= 0)
                yield states[place[pairs.text[at]], pairs.slot[at]], at

    @property
    def _rows(self) -> int:
        """Rows that are computed at a time: a multiple of the batch, which fits the mesh."""
        return -(-_TEXTS // self.data.batch_size) * self.data.batch_size

    def _scale(self, batches: Callable[[], Iterator[Any]]) -> float:
        """Scales the last map so that the soft tokens of a batch are as large as its text embeddings; the factor."""

        def sizes(params: Any, batch: Any) -> tuple[Array, Array]:
            soft = self.model.apply({"params": params}, batch.media, method="soft_tokens").astype(jnp.float32)
            text = self.model.apply(
                {"params": params}, batch.target_ids, method=lambda module, ids: module.decoder.embed(ids)
            ).astype(jnp.float32)
            weights = batch.target_weights[..., None] > 0
            mean_square = (jnp.square(text) * weights).sum() / (weights.sum() * text.shape[-1])
            return jnp.sqrt(jnp.square(soft).mean()), jnp.sqrt(mean_square)

        with self.program.partitioner.activate():
            run = jax.jit(sizes, out_shardings=self.program.partitioner.replicated)
            stream: Any = batches()
            try:
                for batch in itertools.islice(stream, _BATCHES):
                    soft, text = map(float, run(trees.unflatten(self.flat), self.program.put(batch)))
                    if soft > 0 and text > 0:  # neither without pictures nor without text: both would be nan
                        break
                else:
                    raise UserError(
                        f"Handoff.output 'scale' measures a batch with pictures and text; the first {_BATCHES} batches "
                        "have none, or all soft tokens are 0. Choose 'random', or correct the data."
                    )
            finally:
                stream.close()
        ratio = text / soft
        prefix = f"adapter/{self.adapter.output_map}/"
        for path in [path for path in self.flat if path.startswith(prefix)]:
            self._set(path, ratio * np.asarray(_replicated(self.flat[path], self.program), np.float32))
        return ratio


def _replicated(x: Any, program: Program) -> Any:
    return jax.jit(lambda x: x, out_shardings=program.partitioner.replicated)(x)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean()))


def _sentence(facts: Mapping[str, Any]) -> str:
    parts = []
    if "positions" in facts:
        how = "taken from the cache, fitted" if facts.get("cached") else "fitted"
        parts.append(
            f"the last map is {how} on {facts['positions']} positions of text (R2 {facts['r2']:.2f} on others; "
            f"{facts['constant_share']:.0%} of the tiny LM's output is constant)"
        )
    if "scale" in facts:
        parts.append(f"the last map is multiplied by {facts['scale']:.3g}, for soft tokens as large as embeddings")
    for part, side in (("prefix", "before"), ("suffix", "after")):
        if part in facts:
            parts.append(f"{side} the visual tokens stands {''.join(facts[part])!r} as learned vectors")
    if "queries" in facts:
        parts.append(f"queries start at {facts['queries']!r}")
    return "; ".join(parts) or "nothing was to be done"

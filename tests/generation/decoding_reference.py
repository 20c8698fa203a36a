"""A small model, prompts, and slow decoding of them: the whole row is read anew for every token, nothing is cached."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.models import small
from vadapter.generation.decoding import EMPTY, DecodingConfig, decode
from vadapter.generation.top_k import make_top_k
from vadapter.models.vlm import VLM
from vadapter.partitioning import MeshConfig, Partitioner, init_params, make_mesh

NEW = 6
GREEDY = DecodingConfig(max_new_tokens=NEW)
SAMPLE = DecodingConfig(method="sample", max_new_tokens=NEW, temperature=1.3, top_k=12, top_p=0.9, seed=3)
ONE = Partitioner(make_mesh(MeshConfig(), jax.devices()[:1]))


@functools.cache
def many() -> Partitioner:
    """A mesh of all three axes."""
    return Partitioner(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))


class Setup:
    """A model with random parameters and eight prompts of different lengths, of which the last is padding alone."""

    def __init__(self):
        config = small.vlm("mlp")  # quick to compile
        batch = small.batch(config)
        length = batch.tokens.shape[1]
        self.lengths = np.array([length, length - 1, length - 3, length - 2] * 2)
        self.lengths[-1] = 0
        keep = np.arange(length) < self.lengths[:, None]
        self.batch = batch.replace(
            tokens=np.where(keep, batch.tokens, 0),
            segment_ids=keep.astype(np.int32),
            positions=np.where(keep, batch.positions, 0),
            media_index=np.where(keep, batch.media_index, -1),
        )
        self.model = VLM(config)
        self.params = init_params(self.model, self.batch, jax.random.key(0), ONE)
        self._run = jax.jit(self._logits)
        self._compiled = {}

    def only(self, row: int):
        """The batch with nothing but padding in all other rows."""
        return self.batch.replace(segment_ids=np.where(np.arange(8)[:, None] == row, self.batch.segment_ids, 0))

    def some_end(self) -> int:
        """A token that, taken for the end token, ends some rows early, some late and some never."""
        ids, _ = self.decode(DecodingConfig(max_new_tokens=NEW), -1)
        ends = {
            token: {int(np.argmax(row == token)) for row in ids if token in row} for token in ids[ids >= 0].tolist()
        }
        return max(ends, key=lambda token: len(ends[token]))

    @property
    def rows(self) -> list[int]:
        """Rows with a prompt."""
        return [int(i) for i in np.flatnonzero(self.lengths)]

    def decode(self, config, end_ids, partitioner=ONE, batch=None):
        """What is tested: new ids and steps. `end_ids` is an id or a tuple of them."""
        end_ids = np.atleast_1d(np.asarray(end_ids, np.int32))
        if (config, partitioner) not in self._compiled:  # the end tokens are an argument here, to compile less
            run = lambda params, batch, ends: decode(self.model, params, batch, config, ends, make_top_k(partitioner))  # noqa: E731
            self._compiled[config, partitioner] = jax.jit(run)
        with partitioner.activate():
            params = jax.device_put(self.params, partitioner.replicated)
            batch = partitioner.put_batch(self.batch if batch is None else batch)
            out = self._compiled[config, partitioner](params, batch, end_ids)
        return np.asarray(out.ids), int(out.steps)

    def next_logits(self, texts: dict[int, list[int]]) -> dict[int, np.ndarray]:
        """Logits of the next token of rows, given their new tokens so far."""
        pad = [(0, 0), (0, NEW)]
        tokens, segments = np.pad(self.batch.tokens, pad), np.pad(self.batch.segment_ids, pad)
        at = np.zeros(len(tokens), np.int32)
        for row, text in texts.items():
            start = self.lengths[row]
            at[row] = start + len(text) - 1
            tokens[row, start : at[row] + 1] = text
            segments[row, start : at[row] + 1] = 1
        batch = self.batch.replace(
            tokens=tokens,
            segment_ids=segments,
            positions=np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1)),
            media_index=np.pad(self.batch.media_index, pad, constant_values=-1),
        )
        logits = np.asarray(self._run(self.params, batch, at))
        return {row: logits[row] for row in texts}

    def _logits(self, params, batch, at):
        def read(model):
            hidden, _ = model.decoder(model.embed(batch), batch.segment_ids, batch.positions)
            return model.decoder.logits(jnp.take_along_axis(hidden, at[:, None, None], axis=1))[:, 0]

        return self.model.apply({"params": params}, method=read)


def padded(texts: dict[int, list[int]], rows: int) -> np.ndarray:
    """Texts as ids [rows, NEW]."""
    out = np.full((rows, NEW), EMPTY)
    for row, text in texts.items():
        out[row, : len(text)] = text
    return out


def slow_one_by_one(setup, choose, end_ids) -> np.ndarray:
    """Ids of rows that are continued by the token that `choose` gives for (row, step, logits)."""
    end_ids = np.atleast_1d(end_ids)
    texts = {row: [] for row in setup.rows}
    running = set(texts)
    for step in range(NEW):
        for row, logits in setup.next_logits({r: texts[r] for r in running}).items():
            token = int(choose(row, step, logits))
            if token in end_ids:
                running.remove(row)
            else:
                texts[row].append(token)
    return padded(texts, len(setup.lengths))


def slow_beam(setup, beams, alpha, end_ids) -> tuple[np.ndarray, dict[int, str], dict[int, int]]:
    """Beam search in plain Python: ids, why each row stopped, and the tokens it read after its prompt."""
    end_ids = np.atleast_1d(end_ids)
    running = {row: [(0.0, [])] for row in setup.rows}
    ended = {row: [] for row in setup.rows}
    why = dict.fromkeys(setup.rows, "limit")
    steps = dict.fromkeys(setup.rows, 0)

    def score(log_prob, length):
        return log_prob / ((5 + length) / 6) ** alpha

    for length in range(1, NEW + 1):
        rows = [row for row in running if why[row] == "limit"]
        logits = [setup.next_logits({r: running[r][i][1] for r in rows if i < len(running[r])}) for i in range(beams)]
        for row in rows:
            steps[row] = length - 1
            options = []
            for (log_prob, text), of_rows in zip(running[row], logits, strict=False):
                x = of_rows[row].astype(np.float64)
                x -= np.log(np.exp(x).sum())
                options += [(log_prob + x[token], [*text, token]) for token in range(len(x))]
            options.sort(key=lambda option: -option[0])
            ended[row] += [(score(p, length), text[:-1]) for p, text in options[:beams] if text[-1] in end_ids]
            running[row] = [option for option in options if option[1][-1] not in end_ids][:beams]
            if len(ended[row]) >= beams:
                why[row] = "count"
            elif ended[row] and score(running[row][0][0], NEW) <= max(s for s, _ in ended[row]):
                why[row] = "hopeless"
    best = {row: max(ended[row] or running[row], key=lambda hypothesis: hypothesis[0])[1] for row in running}
    return padded(best, len(setup.lengths)), why, steps

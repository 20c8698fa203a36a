"""`VLMFeatureConverter`: examples of a task to rows of a `vadapter.base.batch.Batch`."""

from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

from vadapter.base.errors import UserError
from vadapter.data.rows.preprocessors import MEDIA_ID

_Spec = seqio.FeatureConverter.FeatureSpec


class VLMFeatureConverter(seqio.FeatureConverter):
    """Lays out `inputs`, visual tokens and `targets` in one row.

        [bos] prompt before <visual tokens, R a medium> prompt after | targets, eos last | padding

    Every row begins with the vocabulary's `bos_id` (0 where there is none); that slot counts among `inputs`. The
    lengths are fixed: T = inputs + M * R + targets and L = targets. A row for decoding ends where its targets would
    begin, so there T = inputs + M * R.

    Text that is too long is cut at its end, prompts after the visual tokens and before the tokens that close them; a
    visual token never is. The feature `truncated` says how many tokens were cut.

    `task_feature_lengths` has `inputs`, `targets` and `media`, the shape (M, F, h, w, 3).
    """

    TASK_FEATURES = {
        "inputs": _Spec(dtype=tf.int32),
        "targets": _Spec(dtype=tf.int32),
        "media": _Spec(dtype=tf.uint8, rank=5),
    }
    MODEL_FEATURES = {
        **{k: _Spec(dtype=tf.int32) for k in ("tokens", "segment_ids", "positions", "media_index")},
        "media": _Spec(dtype=tf.uint8, rank=5),
        "target_positions": _Spec(dtype=tf.int32),
        "target_ids": _Spec(dtype=tf.int32),
        "target_weights": _Spec(dtype=tf.float32),
        "truncated": _Spec(dtype=tf.int32, rank=0),
    }
    PACKING_FEATURE_DTYPES = {}

    def __init__(
        self,
        num_visual_tokens: int,
        bos_id: int | None = None,
        for_decoding: bool = False,
        passthrough: Mapping[str, tf.TensorSpec] | None = None,
        closing: int = 0,
    ):
        """Args:
        num_visual_tokens: R.
        bos_id: id of the first slot; None or negative is 0, the pad id.
        for_decoding: rows hold prompts only. Targets are kept, without weight.
        passthrough: specs of features to keep as they are.
        closing: tokens at the end of a prompt that are kept when it is cut: what ends a turn of a chat.
        """
        specs = {k: _Spec(dtype=s.dtype, rank=s.shape.rank) for k, s in (passthrough or {}).items()}
        # seqio's own length check would count the marker of a medium as one token.
        super().__init__(pack=False, apply_length_check=False, bos_id=max(bos_id or 0, 0), passthrough_features=specs)
        self._num_visual_tokens = num_visual_tokens
        self._for_decoding = for_decoding
        self._closing = closing

    def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping) -> tf.data.Dataset:
        lengths = dict(task_feature_lengths)
        check_lengths(lengths)
        return ds.map(lambda ex: self.convert_example(ex, lengths))

    def convert_example(self, ex: Mapping[str, tf.Tensor], lengths: Mapping) -> dict[str, tf.Tensor]:
        """Converts one example; `lengths` as `task_feature_lengths` of a call."""
        prompt, cut = self._prompt(ex["inputs"], lengths["inputs"])
        targets = ex["targets"][: lengths["targets"]]
        cut += tf.size(ex["targets"]) - tf.size(targets)
        text = prompt if self._for_decoding else tf.concat([prompt, targets], 0)
        visual = tf.equal(text, MEDIA_ID)
        media_index = tf.where(visual, tf.cumsum(tf.cast(visual, tf.int32)) - 1, -1)
        length = tf.size(text)
        total = self._row_length(lengths)
        first = tf.size(prompt) - 1
        weights = tf.ones_like(targets, tf.float32) * (0.0 if self._for_decoding else 1.0)
        if "error" in ex:
            weights *= tf.cast(tf.equal(ex["error"], ""), tf.float32)
        steps = 0 if self._for_decoding else tf.range(tf.size(targets))
        row = {
            "tokens": _pad(tf.where(visual, 0, text), total),
            "segment_ids": _pad(tf.ones([length], tf.int32), total),
            "positions": _pad(tf.range(length), total),
            "media_index": _pad(media_index, total, -1),
            "target_positions": _pad(tf.zeros_like(targets) + first + steps, lengths["targets"]),
            "target_ids": _pad(targets, lengths["targets"]),
            "target_weights": _pad(weights, lengths["targets"]),
            "media": tf.ensure_shape(ex["media"], lengths["media"]),
            "truncated": cut,
        }
        return row | {k: ex[k] for k in self._passthrough_features}

    def _prompt(self, inputs: tf.Tensor, room: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the prompt with bos and each marker widened to R slots of `MEDIA_ID`, how many tokens were cut."""
        inputs = tf.concat([[self.bos_id], inputs], 0)
        marker = tf.equal(inputs, MEDIA_ID)
        ordinal = tf.cumsum(tf.cast(tf.logical_not(marker), tf.int32))
        closing = min(self._closing, room - 1)
        keep = marker | (ordinal <= room - closing) | (ordinal > ordinal[-1] - closing)
        cut = tf.size(inputs) - tf.math.count_nonzero(keep, dtype=tf.int32)
        repeats = tf.where(marker, self._num_visual_tokens, 1)
        return tf.repeat(tf.boolean_mask(inputs, keep), tf.boolean_mask(repeats, keep)), cut

    def _row_length(self, lengths: Mapping) -> int:
        total = lengths["inputs"] + lengths["media"][0] * self._num_visual_tokens
        return total if self._for_decoding else total + lengths["targets"]

    def get_model_feature_lengths(self, task_feature_lengths: Mapping) -> Mapping[str, Any]:
        total = self._row_length(task_feature_lengths)
        rows = dict.fromkeys(("tokens", "segment_ids", "positions", "media_index"), total)
        targets = dict.fromkeys(("target_positions", "target_ids", "target_weights"), task_feature_lengths["targets"])
        rest = {k: task_feature_lengths[k] for k in self._passthrough_features}
        return {**rows, **targets, "media": task_feature_lengths["media"], "truncated": 1, **rest}


def check_lengths(lengths: Mapping) -> None:
    """Raises `UserError` unless `inputs` and `targets` are there and at least 1."""
    for key, holds in (("inputs", "the bos slot"), ("targets", "one token to predict")):
        if not isinstance(lengths.get(key), int) or lengths[key] < 1:
            raise UserError(
                f"Expected lengths['{key}'] to be a whole number of at least 1, the room for {holds}; found "
                f"{lengths.get(key)!r} in {dict(lengths)}. Set it."
            )


def _pad(values: tf.Tensor, length: int, fill: int = 0) -> tf.Tensor:
    padded = tf.pad(values, [[0, length - tf.size(values)]], constant_values=fill)
    padded.set_shape([length])
    return padded

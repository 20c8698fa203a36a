"""Layout of rows, literally."""

import numpy as np
import pytest
import tensorflow as tf

from vadapter.base.errors import UserError
from vadapter.data.seqio_tasks import VLMFeatureConverter

LENGTHS = {"inputs": 5, "targets": 3, "media": (1, 1, 2, 2, 3)}


def convert(inputs, targets, media=1, bos=9, for_decoding=False, tokens=2, lengths=LENGTHS):
    shape = (media, 1, 2, 2, 3)
    example = {"inputs": inputs, "targets": targets, "media": np.zeros(shape, np.uint8)}
    signature = {
        "inputs": tf.TensorSpec([None], tf.int32),
        "targets": tf.TensorSpec([None], tf.int32),
        "media": tf.TensorSpec(shape, tf.uint8),
    }
    ds = tf.data.Dataset.from_generator(lambda: [example], output_signature=signature)
    converter = VLMFeatureConverter(tokens, bos, for_decoding)
    return next(converter(ds, {**lengths, "media": shape}).as_numpy_iterator())


def check(row, **expected):
    for name, values in expected.items():
        np.testing.assert_array_equal(row[name], values, err_msg=name)


def test_a_row_with_an_image():
    check(
        convert([4, -1, 5], [6, 7, 1]),
        tokens=[9, 4, 0, 0, 5, 6, 7, 1, 0, 0],
        segment_ids=[1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
        positions=[0, 1, 2, 3, 4, 5, 6, 7, 0, 0],
        media_index=[-1, -1, 0, 1, -1, -1, -1, -1, -1, -1],
        target_positions=[4, 5, 6],
        target_ids=[6, 7, 1],
        target_weights=[1, 1, 1],
        truncated=0,
    )


def test_short_targets_are_padded():
    check(
        convert([-1], [1]),
        tokens=[9, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        target_positions=[2, 0, 0],
        target_ids=[1, 0, 0],
        target_weights=[1, 0, 0],
    )


def test_a_text_document():
    check(
        convert([], [6, 7, 1], media=0, lengths={**LENGTHS, "inputs": 1}),
        tokens=[9, 6, 7, 1],
        media_index=[-1] * 4,
        target_positions=[0, 1, 2],
    )


def test_a_vocabulary_without_bos_begins_with_pad():
    check(convert([4, -1], [6], bos=None), tokens=[0, 4, 0, 0, 6, 0, 0, 0, 0, 0], segment_ids=[1] * 5 + [0] * 5)


def test_two_media_number_on():
    row = convert([-1, 4, -1], [6], media=2)
    check(row, media_index=[-1, 0, 1, -1, 2, 3, -1, -1, -1, -1, -1, -1])


def test_a_row_for_decoding_holds_the_prompt_only():
    check(
        convert([4, -1, 5], [6, 7, 1], for_decoding=True),
        tokens=[9, 4, 0, 0, 5, 0, 0],
        segment_ids=[1, 1, 1, 1, 1, 0, 0],
        target_ids=[6, 7, 1],
        target_weights=[0, 0, 0],
    )


def test_long_text_is_cut_but_never_a_visual_token():
    check(
        convert([2, 3, 4, 5, 6, 7, -1, 8], [6, 7, 8, 1]),
        tokens=[9, 2, 3, 4, 5, 0, 0, 6, 7, 8],
        media_index=[-1] * 5 + [0, 1] + [-1] * 3,
        truncated=4,
    )


def test_lengths_without_room_are_refused():
    with pytest.raises(UserError, match=r"lengths\['inputs'\].*at least 1.*found 0"):
        convert([-1], [1], lengths={**LENGTHS, "inputs": 0})
    with pytest.raises(UserError, match=r"lengths\['targets'\]"):
        convert([-1], [1], lengths={**LENGTHS, "targets": 0})

"""Working ahead: order, errors, and ends."""

import itertools
import threading

import pytest

from vadapter.base.errors import UserError
from vadapter.data.order.config import LoaderConfig
from vadapter.data.reading.loading import ordered_map, read_ahead


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_the_order_of_their_items_for_ever(threads):
    assert list(ordered_map(lambda x: x * x, range(50), threads)) == [x * x for x in range(50)]
    assert list(itertools.islice(ordered_map(str, itertools.count(), threads), 20)) == [str(i) for i in range(20)]


def test_the_first_threads_wait_for_one_another():
    """Three items are worked on at once."""
    together = threading.Barrier(3, timeout=60)
    assert len(list(ordered_map(lambda x: together.wait(), range(3), 3))) == 3


@pytest.mark.parametrize("count", [0, 1, 4])
def test_items_and_errors_come_as_they_are_made(count):
    def items():
        yield from range(5)
        raise UserError("the sixth")

    made = read_ahead(items(), count)
    assert list(itertools.islice(made, 5)) == list(range(5))
    with pytest.raises(UserError, match="the sixth"):
        next(made)
    assert list(read_ahead(iter(range(7)), count)) == list(range(7))


def test_closing_ends_what_is_read_from():
    ended = threading.Event()

    def items():
        try:
            yield from itertools.count()
        finally:
            ended.set()

    made = read_ahead(items(), 2)
    assert next(made) == 0
    made.close()
    assert ended.wait(60)


@pytest.mark.parametrize("size", ["image_size", "num_frames", "num_visual_tokens"])
def test_gin_cannot_bind_what_the_model_dictates(size):
    from vadapter.recipes import gin_front

    gin_front.register([LoaderConfig])
    with pytest.raises(UserError, match=size):
        gin_front.parse_gin([], [f"LoaderConfig.{size} = 4"])

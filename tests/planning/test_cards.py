"""What is known of GPUs, and what a step is expected to take of one."""

import pytest

from vadapter.base.errors import UserError
from vadapter.planning import cards


@pytest.mark.parametrize("name", ["RTX 4090", "rtx4090", "4090", "NVIDIA GeForce RTX 4090"])
def test_names_are_read_forgivingly(name):
    assert cards.card(name).name == "RTX 4090"


@pytest.mark.parametrize("name", ["a100-80g", "A100 80GB", "NVIDIA A100-SXM4-80GB"])
def test_sizes_of_a_card_are_told_apart(name):
    assert cards.card(name).name == "A100 80G"


def test_the_size_in_a_name_may_be_said_or_left_out():
    assert cards.card("NVIDIA H100 80GB HBM3") is cards.card("h100") is not cards.card("H100 PCIe")
    assert cards.card("L4 24GB") is cards.card("l4")


def test_a_program_may_take_what_jax_got_on_the_h200():
    assert cards.card("H200").usable_bytes / 2**30 == pytest.approx(130.016, rel=0.01)


@pytest.mark.parametrize(
    "name", ["", "a100", "rtx", "tpu", "80g", "L4 80GB", "H200 80G", "RTX 4090 Laptop", "RTX 4080 Super"]
)
def test_other_names_are_refused_with_the_list(name):
    with pytest.raises(UserError, match="RTX 4090.*--memory"):
        cards.card(name)


def test_memory_is_read_with_its_unit():
    assert cards.memory("24GB").memory_bytes == 24_000_000_000
    assert cards.memory("24 GiB").memory_bytes == 24 * 2**30


@pytest.mark.parametrize("text", ["", "24", "0GB", "-1GB", "nanGB", "9" * 400 + "GB"])
def test_other_memory_is_refused(text):
    with pytest.raises(UserError, match="24GiB"):
        cards.memory(text)


@pytest.mark.parametrize("limit", [0, 1, 5, 32, 100, 5000])
@pytest.mark.parametrize("start", [1, 7, 64])
def test_the_largest_that_fits_is_found_to_within_an_eighth(limit, start):
    found = cards.largest(lambda n: n <= limit, start)
    assert found <= limit and found + max(1, found // 8) >= min(limit, 4096)


@pytest.mark.parametrize(
    ("tflop", "gib", "measured"), [(126.85, 4.889, 0.301), (408.29, 21.264, 0.805), (816.58, 21.272, 1.544)]
)
def test_times_are_near_those_that_the_h200_measured(tflop, gib, measured):
    assert cards.step_seconds(cards.card("H200"), tflop * 1e12, int(gib * 2**30)) == pytest.approx(measured, rel=0.17)
    assert cards.step_seconds(cards.memory("24GB"), tflop * 1e12, 1) is None


@pytest.mark.parametrize(
    "compiled, kept, arguments, measured",
    [(69.2, 1.48, 4.9, 35.3), (115.8, 2.79, 21.2, 60.7), (194.9, 5.58, 21.2, 96.1)],
    ids=["vitl_1b_64", "vitg_8b_32", "vitg_8b_64"],
)
def test_memory_is_not_told_too_low_for_the_steps_that_the_h200_ran(compiled, kept, arguments, measured):
    told = arguments + cards.temporaries(int(compiled * 2**30), int(kept * 2**30)) / 2**30
    assert measured <= told <= 1.22 * measured


def test_what_is_kept_counts_whole():
    assert cards.temporaries(1000, 1000) == 1000
    assert cards.temporaries(1000, 2000) == 1000
    assert 400 < cards.temporaries(1000, 0) < cards.temporaries(1000, 500) < 1000

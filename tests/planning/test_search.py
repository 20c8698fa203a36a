"""The search, with a made-up compiler: memory and time follow from the setting by a formula."""

import dataclasses

import pytest

from vadapter.base.errors import UserError
from vadapter.planning import search
from vadapter.planning.search import POLICIES, Outcome, Search, Setting, Space

LIMIT = 16.0
START = Setting(64, 1, 1, 1, (("decoder", "full"),), (("decoder", "xla"),))


def measure(setting: Setting) -> Outcome:
    """Weights of 20 GB; activations by policy and micro-batch; recomputation and gathers cost time."""
    policy = POLICIES.index(dict(setting.remat)["decoder"])
    rows = 2 / setting.accumulate / setting.tensor
    peak = 20 / (setting.fsdp * setting.tensor) + rows * (2, 6, 14)[policy]
    gathers = 0.02 * setting.accumulate * (setting.fsdp > 1) + 0.3 * (setting.tensor - 1)
    seconds = (1.33, 1.1, 1.0)[policy] + gathers
    return Outcome(setting, peak <= LIMIT, seconds, peak, LIMIT, communication=gathers / seconds)


def space(**changes) -> Space:
    def refusal(setting: Setting) -> str | None:
        if 20 / (setting.fsdp * setting.tensor) > LIMIT:
            return "the weights alone are too large"
        return None

    fields = dict(
        refusal=refusal, meshes=search.meshes(64), remat={"decoder": POLICIES}, attention={"decoder": ("xla",)}
    )
    return Space(**(fields | changes))  # type: ignore[arg-type]


def best_of_all() -> float:
    every = [
        Setting(*mesh, a, (("decoder", policy),), START.attention)
        for mesh in search.meshes(64)
        for a in (1, 2, 4, 8, 16, 32)
        for policy in POLICIES
    ]
    return min(o.seconds for o in map(measure, every) if o.fits)


def test_it_finds_nearly_the_best_of_all_settings_with_few_compilations():
    found = Search(space())
    ranked = found.run(START, measure)
    assert ranked[0].fits
    assert ranked[0].seconds <= 1.01 * best_of_all()
    assert len(found.outcomes) <= 12 < len(search.meshes(64)) * 18
    assert found.refused[START] == "the weights alone are too large"


def test_results_are_ranked_by_fit_and_then_by_time():
    ranked = Search(space()).run(START, measure)
    fits = [o.fits for o in ranked]
    assert fits == sorted(fits, reverse=True)
    seconds = [o.seconds for o in ranked if o.fits]
    assert seconds == sorted(seconds)


def test_nothing_is_compiled_twice_or_beyond_the_limit():
    seen = []

    def counting(setting: Setting) -> Outcome:
        seen.append(setting)
        return measure(setting)

    found = Search(space(), limit=5)
    found.run(START, counting)
    assert len(seen) == len(set(seen)) == 5
    assert "5 compilations" in found.ended


def test_what_asks_for_more_than_a_setting_that_does_not_fit_is_not_compiled():
    tight = dataclasses.replace(START, fsdp=2, data=32, accumulate=2)

    def never(setting: Setting) -> Outcome:
        return dataclasses.replace(measure(setting), fits=False, peak_bytes=LIMIT + 1 + 1 / setting.accumulate)

    found = Search(space(), limit=50)
    found.run(tight, never)
    tried = [o.setting for o in found.outcomes]
    for i, later in enumerate(tried):
        assert not any(search.asks_more(later, earlier) for earlier in tried[:i])


def test_if_nothing_fits_the_nearest_miss_comes_first():
    small = Search(space(), limit=6)
    ranked = small.run(START, lambda s: dataclasses.replace(measure(s), fits=False, limit_bytes=1.0))
    missing = [o.peak_bytes for o in ranked]
    assert missing == sorted(missing) and not ranked[0].fits


def test_if_every_setting_is_refused_the_reasons_are_said():
    found = Search(space(refusal=lambda setting: "too large"))
    assert found.run(START, measure) == []
    assert found.ended == "Nothing was compiled: too large"


def test_what_shows_only_when_it_is_traced_is_a_refusal_too():
    def picky(setting: Setting) -> Outcome:
        if setting.tensor > 1:
            raise UserError("20 heads do not divide")
        return measure(setting)

    found = Search(space(), limit=40, patience=40)
    assert found.run(START, picky)[0].fits
    assert "20 heads do not divide" in found.refused.values()


def test_what_is_known_stays_when_it_is_interrupted():
    def interrupted(setting: Setting) -> Outcome:
        if len(found.outcomes) == 2:
            raise KeyboardInterrupt
        return measure(setting)

    found = Search(space())
    with pytest.raises(KeyboardInterrupt):
        found.run(START, interrupted)
    assert len(found.ranked()) == 2 and "interrupted" in found.ended


@pytest.mark.parametrize("devices", [1, 4, 64, 48])
def test_meshes_use_all_devices_and_differ(devices):
    made = search.meshes(devices)
    assert all(d * f * t == devices for d, f, t in made)
    assert len(set(made)) == len(made) and (devices, 1, 1) in made and (1, devices, 1) in made


def test_another_attention_is_tried_where_there_is_one():
    found = Search(space(attention={"decoder": ("xla", "splash")}))

    def faster(setting: Setting) -> Outcome:
        o = measure(setting)
        return dataclasses.replace(
            o, seconds=o.seconds * (0.5 if dict(setting.attention)["decoder"] == "splash" else 1)
        )

    assert dict(found.run(START, faster)[0].setting.attention) == {"decoder": "splash"}

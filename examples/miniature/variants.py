"""Tables of the miniature that compare models, not adapters: the perceiver's parts, encoders, depths, sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

from vadapter.evaluation.seeds import differences, estimate
from vadapter.reports import chart
from vadapter.reports.sweep_data import estimate_text

BASELINE, BEST = "perceiver", "words_frozen"
Line = Mapping[str, Any]
Losses = Mapping[str, Mapping[int, float]]  # test loss by arm and seed


def tables(lines: Sequence[Line], variants: Sequence[Line]) -> dict[str, list[str]]:
    """All of them by title, of the runs of the demo's models and of those of others."""
    base, losses = by_arm(lines), by_arm(variants)
    return {
        "The perceiver's parts": perceiver_table(base, losses, variants),
        "Encoders that learned otherwise": encoder_table(base, losses),
        "The depth of the tiny LM": depth_table(base, losses),
        "Three encoders by three decoders": scale_table(base, losses),
    }


def by_arm(lines: Sequence[Line]) -> Losses:
    """Test losses at the chosen rate, by arm and seed."""
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        if line["chosen"] and line["status"] == "done":
            found.setdefault(line["arm"], {})[line["seed"]] = line["test"]
    return found


def _by_seed(found: Mapping[int, float], signed: str = "") -> str:
    """Each seed's value, behind their mean and interval where there are three or more."""
    values = ", ".join(f"{found[seed]:{signed}.3f}" for seed in sorted(found))
    return values if len(found) < 3 else f"{estimate_text(estimate(list(found.values())), signed)} ({values})"


def perceiver_table(base: Losses, losses: Losses, variants: Sequence[Line]) -> list[str]:
    """Rows of the paper's Table 1: one part of the perceiver changed, and what it costs, seed by seed."""
    rows = []
    for line in variants:
        name = line["arm"]
        if name not in TABLE1 or line["seed"] != min(losses.get(name, {-1: 0.0})):
            continue
        apart = _by_seed(differences(losses[name], base[BASELINE]), "+")
        rows.append([TABLE1[name], f"{line['trained_parameters']:,}", _by_seed(losses[name]), apart])
    return markdown(["changed", "trained", "test loss by seed", "less the perceiver"], rows) if rows else []


TABLE1 = {
    "perceiver_norm_final": "LayerNorm on the result alone",
    "perceiver_norm_shared": "one LayerNorm for queries and keys",
    "perceiver_norm_separate_final": "separate LayerNorms, and one on the result",
    "perceiver_no_ffn": "no feed-forward blocks",
    "perceiver_no_time": "no time embedding",
    "perceiver_query_32": "queries of 32, not 64",
    "perceiver_query_128": "queries of 128",
    "perceiver_hidden_32": "cross-attention of 32, not 64",
    "perceiver_hidden_128": "cross-attention of 128",
    "perceiver_layers_1": "1 layer, not 4",
    "perceiver_layers_2": "2 layers",
    "perceiver_layers_6": "6 layers",
}


ENCODERS = {"": "labels of cells", "_captioner": "captions written", "_contrastive": "captions told apart"}


def encoder_table(base: Losses, losses: Losses) -> list[str]:
    """Arms on encoders that captions alone trained, beside those on the demo's, and each less its perceiver."""
    asked = [suffix for suffix in ENCODERS if suffix and f"{BASELINE}{suffix}" in losses]
    if not asked:
        return []
    rows = []
    for name in (x.removesuffix(asked[0]) for x in losses if x.endswith(asked[0])):
        for suffix, what in ENCODERS.items():
            found = (losses if suffix else base).get(f"{name}{suffix}", {})
            seeds = losses[f"{BASELINE}{asked[0]}"]
            found = found if suffix else {seed: x for seed, x in found.items() if seed in seeds}
            baseline = (losses if suffix else base).get(f"{BASELINE}{suffix}", {})
            if found:
                apart = "" if name == BASELINE else _by_seed(differences(found, baseline), "+")
                rows.append([f"`{name}`", what, _by_seed(found), apart])
    return markdown(["arm", "what the encoder learned", "test loss", "less the perceiver"], rows)


def depth_table(base: Losses, losses: Losses) -> list[str]:
    """Arms by the layers of the tiny LM."""
    rows = []
    for name in ("queries_random", BEST):
        found = [losses.get(f"{name}_shallow", {}), base[name], losses.get(f"{name}_deep", {})]
        seeds = set(found[0]) & set(found[2])
        if seeds:
            rows.append([f"`{name}`", *(_by_seed({s: x for s, x in row.items() if s in seeds}) for row in found)])
    return markdown(["arm", "1 layer", "2 layers", "4 layers"], rows) if rows else []


SIZES = ("small", "base", "large")
DECODERS = {"small": 289, "base": 656, "large": 1820}  # thousands of parameters


def scale_table(base: Losses, losses: Losses) -> list[str]:
    """Test loss of the perceiver and of `words_frozen`, seed by seed, for each encoder (rows) and decoder (columns)."""
    rows = []
    for encoder in SIZES:
        for name in (BASELINE, BEST):
            keys = [f"{name}_{encoder}_{decoder}" for decoder in SIZES]
            found = [losses.get(key, base[name] if key.endswith("_base_base") else {}) for key in keys]
            seeds = set.intersection(*(set(x) for x in found))
            if seeds:
                rows.append(
                    [encoder, f"`{name}`", *(_by_seed({s: x for s, x in y.items() if s in seeds}) for y in found)]
                )
    return markdown(["encoder", "arm", "small decoder", "base decoder", "large decoder"], rows) if rows else []


def scale_series(lines: Sequence[Line], variants: Sequence[Line]) -> list[chart.Series]:
    """The same as lines over the decoder's size, one for each arm and encoder: means over the seeds that all have."""
    base, losses = by_arm(lines), by_arm(variants)
    found = {}
    for name in (BASELINE, BEST):
        for encoder in SIZES:
            keys = {decoder: f"{name}_{encoder}_{decoder}" for decoder in SIZES}
            found[name, encoder] = {
                decoder: losses.get(key, base[name] if key.endswith("_base_base") else {})
                for decoder, key in keys.items()
            }
    seeds = set.intersection(*(set(x) for by_decoder in found.values() for x in by_decoder.values()))
    points = {
        key: [(DECODERS[decoder], sum(x[seed] for seed in seeds) / len(seeds)) for decoder, x in by_decoder.items()]
        for key, by_decoder in found.items()
    }
    return [
        chart.Series(f"{name}, {encoder} encoder", points[name, encoder], index)
        for index, (name, encoder) in enumerate(points)
    ]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table."""
    every = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(row)} |" for row in every]

"""The card of a bundle: its README.md, made of what `bundle.json` says."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vadapter
from vadapter.base import pages
from vadapter.models.configuration import describe
from vadapter.runs.description import Description, preprocessing


def card(
    name: str,
    description: Description,
    backbones: Sequence[Any],
    sizes: Mapping[str, int],
    adapter: Mapping[str, Any],
    step: int,
) -> str:
    """Returns the card as Markdown.

    Args:
        name: of the bundle.
        description: of the model.
        backbones: what the bundle needs besides, see `bundle.Backbone`.
        sizes: `{slash path: number of weights}` of what is in the bundle.
        adapter: what `bundle.json` says of the file with the parameters.
        step: checkpoint that they are from.
    """
    content = {
        "name": name,
        "version": vadapter.__version__,
        "parts": _parts(description, backbones, sizes),
        "adapter": adapter,
        "backbones": backbones,
        "options": [f"`--{part}=DIR`" for backbone in backbones for part in backbone.parts],
        "input": _input(description),
        "training": {"step": step, **_told(_flat(description.training))},
    }
    template = Path(__file__).parent / "templates" / "card.md.j2"
    return pages.render(template, content, markdown=True, filters={"cell": _cell})


def _parts(description: Description, backbones: Sequence[Any], sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """A row for each part of the model, whether it is in the bundle or beside it."""
    rows = []
    for part in description.model.parts:
        what = describe(getattr(description.model, part))
        here = sum(n for path, n in sizes.items() if path.startswith(f"{part}/"))
        if here:
            rows.append({"part": part, "what": what, "parameters": here, "here": True})
        for backbone in backbones:
            if part in backbone.parts:
                rows.append({"part": part, "what": what, "parameters": backbone.parts[part], "here": False})
    return rows


def _input(description: Description) -> dict[str, Any]:
    facts: dict[str, Any] = dict(preprocessing(description))
    tokens = description.model.data_sizes()["num_visual_tokens"]
    facts["visual tokens"] = ", ".join(
        f"{tokens[n]} of {'a still image' if n == 1 else f'{n} frames'}" for n in sorted(tokens)
    )
    if text := description.text:
        facts["vocabulary"] = f"{text.vocabulary or 'ships with vadapter'} (sha256 `{text.sha256}`)"
        facts |= {f"prompt of {kind}": f"`{template}`" for kind, template in text.prompts.items()}
        facts["prompt format"] = text.prompt_format
        facts["room for text"] = ", ".join(f"{n} tokens of {what}" for what, n in text.lengths.items())
    return facts


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as one level of names: {"val": {"loss": 1}} becomes {"val/loss": 1}."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{inner}": x for inner, x in _flat(value).items()}
        elif value is not None:
            flat[name] = value
    return flat


def _told(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts without the figures of the last training steps that say nothing of the model."""
    kept = ("metrics/loss", "metrics/accuracy")
    return {name: value for name, value in facts.items() if not name.startswith("metrics/") or name in kept}


def _cell(value: Any) -> str:
    """A value as the text of a table's cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ("<br>" if any(len(str(item)) > 40 for item in value) else ", ").join(_cell(item) for item in value)
    return str(value).replace("|", "\\|").replace("\n", " ")

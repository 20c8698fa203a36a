"""The card of a bundle or of a folder for transformers: its README.md, made of what the run knows.

The head is the YAML that Hugging Face's hub reads. What is not known is said to be unknown; nothing is guessed.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import vadapter
from vadapter.base import pages
from vadapter.models.configuration import describe
from vadapter.runs.description import Description, preprocessing

BUNDLE = "bundle"
_UNKNOWN = "not known"
_HUB = re.compile(r"(?:hf:)?([\w.-]+/[\w.-]+?)(?:[/@].*)?")
# Facts of the training that the card tells in places of their own.
_ELSEWHERE = ("made_from", "figures", "license")


def of_bundle(
    name: str,
    description: Description,
    backbones: Sequence[Any],
    sizes: Mapping[str, int],
    file_bytes: int,
    step: int,
    repository: str | None = None,
) -> str:
    """Returns the card of a bundle as Markdown.

    Args:
        name: of the folder.
        description: of the model.
        backbones: what the bundle needs besides, see `bundle.Backbone`.
        sizes: `{slash path: number of weights}` of what is in the bundle.
        file_bytes: size of the file with the parameters.
        step: checkpoint that they are from.
        repository: `owner/name` on the hub, where it goes; None for a folder.
    """
    rows = []
    for part in description.model.parts:
        here = sum(n for path, n in sizes.items() if path.startswith(f"{part}/"))
        counts = [(here, True)] if here else []
        counts += [(backbone.parts[part], False) for backbone in backbones if part in backbone.parts]
        what = describe(getattr(description.model, part))
        rows += [{"part": part, "what": what, "parameters": count, "here": inside} for count, inside in counts]
    content = {
        "bytes": file_bytes,
        "backbones": backbones,
        "options": "".join(f" --{part}=DIR" for backbone in backbones for part in backbone.parts),
        "where": f"hf:{repository}" if repository else name,
    }
    return _rendered(BUNDLE, repository or name, description, rows, step, content)


def of_transformers(
    name: str, description: Description, sizes: Mapping[str, int], step: int, repository: str | None, layout: str
) -> str:
    """Returns the card of a folder for transformers as Markdown.

    Args:
        name: of the folder.
        description: of the model.
        sizes: number of weights of each part.
        step: checkpoint that they are from.
        repository: as of `of_bundle`.
        layout: of `export_transformers`.
    """
    parts = {part: describe(getattr(description.model, part)) for part in description.model.parts}
    rows = [{"part": part, "what": what, "parameters": sizes[part], "here": True} for part, what in parts.items()]
    content = {"where": repository or name}
    return _rendered(layout, repository or name, description, rows, step, content)


def _rendered(
    form: str, name: str, description: Description, rows: Sequence[Any], step: int, content: Mapping[str, Any]
) -> str:
    training = description.training
    made_from = [_origin(record) for record in _records(training.get("made_from"))]
    told = {key: value for key, value in training.items() if key not in _ELSEWHERE}
    everything = {
        "form": form,
        "name": name.rpartition("/")[2],
        "version": vadapter.__version__,
        "head": list(_head(form, training, made_from)),
        "parts": rows,
        "made_from": made_from,
        "figures": [_figure(record) for record in _records(training.get("figures"))],
        "license": training.get("license"),
        "asks": bool(description.text and any("question" in kind for kind in description.text.prompts)),
        "input": _input(description),
        "training": {"step": step, **_told(_flat(told))},
        **content,
    }
    template = Path(__file__).parent / "templates" / "card.md.j2"
    return pages.render(template, everything, markdown=True, filters={"cell": _cell})


def _head(form: str, training: Mapping[str, Any], made_from: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Lines of YAML; JSON's texts are YAML's."""
    yield f"library_name: {'vadapter' if form == BUNDLE else 'transformers'}"
    yield "pipeline_tag: image-text-to-text"
    yield "tags: [vadapter, vision-language]"
    if license := training.get("license"):
        yield f"license: {json.dumps(str(license))}"
    hub = [match[1] for record in made_from if (match := _HUB.fullmatch(record["hub"]))]
    if hub:
        yield f"base_model: {json.dumps(list(dict.fromkeys(hub)))}"


def _origin(record: Mapping[str, Any]) -> dict[str, str]:
    names = ("name", "hub", "commit", "family", "license", "sha256")
    found = {name: str(record[name]) if record.get(name) else "" for name in names}
    return {**found, "license": found["license"] or _UNKNOWN, "family": found["family"] or _UNKNOWN}


def _figure(record: Mapping[str, Any]) -> dict[str, str]:
    bounds = record.get("interval")
    shown = f"{_cell(bounds[0])} to {_cell(bounds[1])}" if isinstance(bounds, list) and len(bounds) == 2 else ""
    data = " ".join(_cell(record[key]) for key in ("data", "split") if key in record)
    records = f"{record['records']} records" if "records" in record else ""
    score = _cell(record.get("score"))
    return {"name": _cell(record.get("name")), "score": score, "interval": shown, "data": data, "records": records}


def _records(found: Any) -> list[Mapping[str, Any]]:
    """The objects in a list that a file gave."""
    return [record for record in found if isinstance(record, Mapping)] if isinstance(found, list) else []


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
    kept = ("metrics/loss", "metrics/accuracy", "metrics/data/seen")
    return {name: value for name, value in facts.items() if not name.startswith("metrics/") or name in kept}


def _cell(value: Any) -> str:
    """A value as the text of a table's cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ("<br>" if any(len(str(item)) > 40 for item in value) else ", ").join(_cell(item) for item in value)
    return str(value).replace("|", "\\|").replace("\n", " ")

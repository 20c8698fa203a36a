"""The body of a chat completion: which fields it may have, and what they may say."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vadapter.base import json_text
from vadapter.data.reading.records import clean
from vadapter.serving.api_errors import ApiError, wrong
from vadapter.serving.limits import Limits

_SHOWN = 80  # characters of a value in a message
_MOST_TURNS = 1000
_MOST_STOPS, _LONGEST_STOP = 4, 256
# Fields that would change the answer if they said anything else than this. Others that are not known change nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "top_k": (0, -1),
    "min_p": (0,),
    # of vLLM and of transformers
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "echo": (False,),
    "continue_final_message": (False,),
    "chat_template": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
}


@dataclasses.dataclass(frozen=True)
class Asked:
    """A chat completion that is asked for.

    Attributes:
        model: its name.
        messages: as they came; see `vadapter.serving.prompts`.
        max_tokens: of the answer; None leaves it to the server.
        temperature: 0 takes the most likely token, and is the default.
        top_p: as of `DecodingConfig`.
        seed: None draws one.
        stop: the answer ends before any of these texts.
        stream: whether the answer comes piece by piece.
        usage: whether a stream ends with the numbers of tokens.
    """

    model: str
    messages: Sequence[Mapping[str, Any]]
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False


def parse(body: bytes, models: Sequence[str], limits: Limits) -> Asked:
    """Reads a request.

    Args:
        body: JSON.
        models: that are served.
        limits: of the server.

    Raises:
        ApiError: it is not JSON, a field has a value that it cannot have, or the model is not here.
    """
    try:
        fields = json_text.loads(body)
    except ValueError as e:
        raise wrong(f"The body of the request is not JSON ({str(e)[:_SHOWN]}).") from None
    if not isinstance(fields, dict):
        raise wrong("The body of the request is not a JSON object.")
    fields = {key: value for key, value in fields.items() if value is not None}
    _check_neutral(fields)
    model = _of_type(fields, "model", str, "the name of a model", required=True)
    if model not in models:
        raise ApiError(
            404,
            f"There is no model {clean(model)[:_SHOWN]!r} here; there is {', '.join(models)}.",
            "model_not_found",
            "model",
        )
    options = _of_type(fields, "stream_options", dict, "an object") or {}
    return Asked(
        model,
        _messages(fields),
        _max_tokens(fields, limits),
        _number(fields, "temperature", 0.0, 0.0, 2.0),
        _top_p(fields),
        _seed(fields),
        _stops(fields),
        bool(_of_type(fields, "stream", bool, "true or false")),
        options.get("include_usage") is True,
    )


def _check_neutral(fields: Mapping[str, Any]) -> None:
    for name, values in _NEUTRAL.items():
        value = fields.get(name)
        same = (value == x and isinstance(value, bool) == isinstance(x, bool) for x in values)
        if value is not None and not any(same):
            raise wrong(f"This server does nothing with {name}; leave it out.", name, "unsupported_parameter")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_type(fields: Mapping[str, Any], name: str, kind: type, expected: str, required: bool = False) -> Any:
    value = fields.get(name)
    if value is None and required:
        raise wrong(f"{name} is missing: give {expected}.", name)
    if value is not None and not isinstance(value, kind):
        raise wrong(f"{name} is {_short(value)}; expected {expected}.", name)
    return value


def _messages(fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = _of_type(fields, "messages", list, "a list of turns", required=True)
    if not found or not all(isinstance(turn, dict) for turn in found):
        raise wrong("messages has no turns, or one that is not an object with role and content.", "messages")
    if len(found) > _MOST_TURNS:
        raise wrong(f"messages has {len(found)} turns; at most {_MOST_TURNS} are read.", "messages")
    return found


def _max_tokens(fields: Mapping[str, Any], limits: Limits) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        if name not in fields:
            continue
        value = fields[name]
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limits.new_tokens:
            raise wrong(
                f"{name} is {_short(value)}; this server gives 1 to {limits.new_tokens} tokens an answer.", name
            )
        return value
    return None


def _number(fields: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = fields.get(name, default)
    if not _is_number(value) or not least <= value <= most:
        raise wrong(f"{name} is {_short(value)}; expected a number of {least:g} to {most:g}.", name)
    return float(value)


def _top_p(fields: Mapping[str, Any]) -> float:
    found = _number(fields, "top_p", 1.0, 0.0, 1.0)
    if found == 0:
        raise wrong("top_p is 0; expected a number above 0, up to 1. The most likely token is temperature 0.", "top_p")
    return found


def _seed(fields: Mapping[str, Any]) -> int | None:
    found = fields.get("seed")
    if found is None:
        return None
    if not isinstance(found, int) or isinstance(found, bool) or not -(2**63) <= found < 2**63:
        raise wrong(f"seed is {_short(found)}; expected a whole number of 64 bits.", "seed")
    return found % 2**32


def _stops(fields: Mapping[str, Any]) -> tuple[str, ...]:
    found = fields.get("stop", [])
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or len(found) > _MOST_STOPS or not all(isinstance(x, str) and x for x in found):
        raise wrong(f"stop is {_short(found)}; expected a text, or a list of up to {_MOST_STOPS} texts.", "stop")
    if any(len(x) > _LONGEST_STOP for x in found):
        raise wrong(f"stop has a text of more than {_LONGEST_STOP} characters.", "stop")
    return tuple(map(clean, found))


def _short(value: Any) -> str:
    """A value for a message."""
    try:
        text = clean(repr(value))
    except (ValueError, RecursionError):  # a number of thousands of digits
        return "too long"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

"""A model's settings as its config.json has them, read with care: what is missing, odd or unknown to us is an error."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from vadapter.base.errors import UserError
from vadapter.models.layers import Activation
from vadapter.weights.tensors import Tensors

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
MOST_LAYERS = 1000  # the largest published models have some hundred
assert set(_ACTIVATIONS.values()) == set(get_args(Activation))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a model, or of one part of it.

    Attributes:
        given: as in config.json.
        where: the checkpoint, for messages.
        defaults: what a setting is that is not given; config.json may leave out what is at its default.
    """

    given: Mapping[str, Any]
    where: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The `model_type`."""
        return str(self.get("model_type"))

    @property
    def _file(self) -> str:
        """Where the settings stand, for messages."""
        return f"{'The metadata' if self.where.endswith('.gguf') else 'config.json'} of {self.where}"

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Settings":
        """Returns the settings over other defaults; those of before win."""
        return dataclasses.replace(self, defaults={**defaults, **self.defaults})

    def with_default(self, name: str, value: Any) -> "Settings":
        """Returns the settings with one more default, which wins over that of before."""
        return dataclasses.replace(self, defaults={**self.defaults, name: value})

    def nested(self, name: str, kind: str) -> "Settings":
        """Returns the settings of a part of the `model_type` `kind`; {} where config.json leaves it out."""
        # OpenAI's CLIP files have the part twice; transformers reads this one.
        inner = self.get(f"{name}_dict") or self.get(name) or {}
        if not isinstance(inner, Mapping):
            raise self.error(name, inner, "a dictionary")
        part = Settings(inner, self.where, {"model_type": kind})
        if part.kind not in (kind, ""):
            raise part.error("model_type", part.kind, f"{kind!r} in {name}")
        return part

    def get(self, name: str, otherwise: Any = None) -> Any:
        """Returns a setting, its default, or `otherwise`. null is a value of its own, as it is for transformers."""
        return self.given.get(name, self.defaults.get(name, otherwise))

    def whole(self, name: str) -> int:
        """Returns a whole number above 0."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(name, value, "a whole number above 0")
        return value

    def layers(self, name: str = "num_hidden_layers") -> int:
        """Returns a number of layers: of each there is a list entry somewhere, so a wrong one must not fill memory."""
        value = self.whole(name)
        if value > MOST_LAYERS:
            raise self.error(name, value, f"a whole number above 0, and at most {MOST_LAYERS}")
        return value

    def real(self, name: str) -> float:
        """Returns a number above 0."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.error(name, value, "a number above 0")
        return float(value)

    def optional_real(self, name: str) -> float | None:
        """Returns a number above 0, or None where the setting is null or not there."""
        return None if self.get(name) is None else self.real(name)

    def flag(self, name: str) -> bool:
        """Returns true or false."""
        value = self.get(name)
        if not isinstance(value, bool):
            raise self.error(name, value, "true or false")
        return value

    def activation(self, name: str) -> Activation:
        """Returns our name of an activation."""
        value = self.get(name)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise self.error(name, value, f"one of {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def refuse(self, allowed: Mapping[str, Sequence[Any]], advice: str = "") -> None:
        """Raises a `UserError` if a setting is not one of the values that we can do. What is not there is fine."""
        for name, values in allowed.items():
            if name in self.given and self.given[name] not in values:
                shown = str(self.given[name])
                raise UserError(
                    f"{self._file} sets {name} to {shown[:200]}, which changes the model's results in a "
                    f"way that is not supported here; expected {' or '.join(map(repr, values))}. "
                    f"{advice or 'Take another checkpoint of this family'}."
                )

    def error(self, name: str, value: Any, expected: str) -> UserError:
        """Makes the error for a setting that is not as expected."""
        found = repr(value) if name in self.given or name in self.defaults else "nothing"
        return UserError(
            f"{self._file}: expected {expected} for {name} and found {found[:200]}. Use the settings that belong to "
            "the weights; if these are they, the model cannot be imported."
        )


def find_prefix(tensors: Tensors, *endings: str) -> str:
    """Returns what stands before an ending in the name of a tensor, which differs among versions of transformers.

    Args:
        tensors: the checkpoint.
        endings: for example `embed_tokens.weight`; the first that a tensor has counts.

    Raises:
        UserError: no tensor has such a name, or more than one have the first.
    """
    for ending in endings:
        pattern = re.compile(rf"((?:.*\.)?){re.escape(ending)}")
        found = [match[1] for name in tensors.infos if (match := pattern.fullmatch(name))]
        if len(found) == 1:
            return found[0]
        if found:
            raise _unclear(tensors, ending, " and ".join(f"{prefix}{ending}" for prefix in found[:5]))
    raise _unclear(tensors, endings[0], f"none among {', '.join(sorted(tensors.infos)[:5])}, ...")


def _unclear(tensors: Tensors, ending: str, found: str) -> UserError:
    return UserError(
        f"Expected one tensor of {tensors.where} to be named ...{ending}, and found {found}. "
        "Use the weights that belong to config.json, as transformers saves them, and all of their files."
    )

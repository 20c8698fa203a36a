"""Settings of text generation, and what it gives."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, get_args

import flax.struct
import jax.numpy as jnp

from vadapter.base.array_types import Array, Bool, Int
from vadapter.base.errors import UserError

EMPTY = -1  # no token has it; 0 is a word in some vocabularies
Method = Literal["greedy", "sample", "beam"]
Draft = Literal["prompt_lookup", "words"]
EndIds = Sequence[int] | Int[Array, " E"]  # any of them ends a text; with () every text goes on to the limit


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How a text is chosen. Settings of other methods than the chosen one do nothing.

    Attributes:
        method: `greedy` takes the most likely token, `sample` draws one, `beam` looks for a likely text.
        max_new_tokens: limit on the new tokens, the end token included.
        temperature: of `sample`: logits are divided by it, before anything else.
        top_k: of `sample`: only the k most likely tokens are drawn, of equal ones those first in the vocabulary;
            0 is all.
        top_p: of `sample`: of what `top_k` left, only the fewest most likely tokens that together have this
            probability are drawn, and those as likely as the last of them; 1 is all (Holtzman et al. 2020, nucleus).
        beams: of `beam`: hypotheses of each row.
        length_penalty: of `beam`: alpha in ((5 + length) / 6) ** alpha, which divides the log-probability of an ended
            hypothesis (Wu et al. 2016); 0 is off, more favours longer texts.
        seed: of `sample`. The same row gives the same sample with any other rows, batch size and mesh.
        draft: of `greedy` and `sample`: where a guess of the next tokens comes from, which the model checks in one call
            (speculative decoding). The texts stay those without a draft, but for the rounding of sums. `prompt_lookup`
            looks for the last tokens in the prompt and in the text so far, and guesses what followed there; `words`
            looks in the words of the adapter's tiny LM as well (`LMAdapterConfig.num_words`), where both language
            models have one tokeniser. None guesses nothing.
        num_draft_tokens: of `draft`: tokens of a guess at most.
    """

    method: Method = "greedy"
    max_new_tokens: int = 32
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 4
    length_penalty: float = 0.6
    seed: int = 0
    draft: Draft | None = None
    num_draft_tokens: int = 4

    def __post_init__(self):
        def expect(name: str, good: bool, expected: str) -> None:
            if not good:
                raise UserError(f"DecodingConfig.{name} is {getattr(self, name)!r}; expected {expected}.")

        expect("method", self.method in get_args(Method), "'greedy', 'sample' or 'beam'")
        expect("max_new_tokens", self.max_new_tokens >= 1, "1 or more")
        expect("temperature", 0 <= self.temperature < math.inf, "a number above 0")
        if self.method == "sample":
            expect("temperature", self.temperature > 0, "a number above 0; the limit of 0 is the method 'greedy'")
        expect("top_k", self.top_k >= 0, "the number of tokens to keep, or 0 for all")
        expect("top_p", 0 < self.top_p <= 1, "a probability above 0, up to 1 for all tokens")
        expect("beams", self.beams >= 1, "1 or more")
        expect("length_penalty", 0 <= self.length_penalty < math.inf, "0 or more")
        expect("draft", self.draft is None or self.draft in get_args(Draft), "None, 'prompt_lookup' or 'words'")
        if self.method == "beam":
            expect("draft", self.draft is None, "None: beam search has no drafts, the methods 'greedy' and 'sample' do")
        expect("num_draft_tokens", self.num_draft_tokens >= 1, "1 or more")
        expect("seed", 0 <= self.seed < 2**32, "0 .. 2**32 - 1")

    @property
    def guessed(self) -> int:
        """Tokens of a guess; 0 without drafts. The first token is never guessed, so there are fewer than the limit."""
        return min(self.num_draft_tokens, self.max_new_tokens - 1) if self.draft else 0


@flax.struct.dataclass
class Decoded:
    """What a method gives.

    Attributes:
        ids: new ids of each row; `EMPTY` from an end token on.
        steps: tokens that were read after the prompts, of all rows at once; shows that decoding stopped early.
    """

    ids: Int[Array, "B max_new_tokens"]
    steps: Int[Array, ""]


def is_end(tokens: Int[Array, "*B"], end_ids: EndIds) -> Bool[Array, "*B"]:
    """Returns which tokens end a text: those that are one of `end_ids`."""
    return (tokens[..., None] == jnp.asarray(end_ids, jnp.int32)).any(axis=-1)

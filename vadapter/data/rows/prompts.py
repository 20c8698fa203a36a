"""Prompt templates: plain text with `<media>` where the visual tokens go and, for questions, `<question>`.

The files of data/prompts are the paper's. `caption`, `image_question` and `video_question` are those of its table 11.
`image_question_examples`, `video_question_examples` and `text_example` are those of appendix B, where text-only pairs
of training data go before a question, at `<examples>`; the paper does not say how the two go together, so the first
sentence of table 11 begins them too.
"""

import functools
import re

import numpy as np

from vadapter.base import resources
from vadapter.base.errors import UserError
from vadapter.data.rows.text_vocabulary import TextVocabulary

MEDIA_ID = -1  # stands among a prompt's ids where its visual tokens go
MEDIA = "<media>"
OBJECT = "\ufffc"  # a medium's place in a turn of a conversation: Unicode's sign for an object in a text
QUESTION = "<question>"
EXAMPLES = "<examples>"
ANSWER = "<answer>"


@functools.cache
def load(name: str) -> str:
    """Returns the prompt data/prompts/<name>.txt.

    Raises:
        UserError: there is no such prompt.
    """
    folder = resources.folder("data") / "prompts"
    try:
        return (folder / f"{name}.txt").read_text(encoding="utf-8").strip("\n")
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in folder.glob("*.txt")))
        raise UserError(
            f"Expected a prompt's name, one of {known}, or a template with {MEDIA} in it; found {name!r}. "
            "Name one of these, or write the template itself."
        ) from None


def resolve(prompt: str, question: bool) -> str:
    """Returns the template that `prompt` names or is, checked.

    Args:
        prompt: a name in data/prompts, or a template (recognised by its `<media>`, or a space).
        question: whether the template must have a place for a question. It may then have `<examples>` before `<media>`.

    Raises:
        UserError: the template has not exactly one `<media>`, not the `<question>` that it needs, or `<examples>` at a
            wrong place.
    """
    template = prompt if MEDIA in prompt or " " in prompt else load(prompt)
    if template.count(MEDIA) != 1:
        raise UserError(
            f"Expected exactly one {MEDIA} in a prompt, the room for its visual tokens; found {template.count(MEDIA)} "
            f"in {template!r}. Write {MEDIA} once, where the image or video goes."
        )
    if template.count(QUESTION) != int(question):
        raise UserError(
            f"Expected {QUESTION} {'once' if question else 'nowhere'} in the prompt of "
            f"{'questions' if question else 'captions'}; found {template.count(QUESTION)} in {template!r}. "
            "Change the prompt."
        )
    before, _ = split(template)
    if template.count(EXAMPLES) > int(question and EXAMPLES in before):
        raise UserError(
            f"Expected {EXAMPLES} at most once, before {MEDIA}, and in prompts of questions only; found {template!r}. "
            "Change the prompt."
        )
    return template


def resolve_example(prompt: str) -> str:
    """Returns the template of an example that `prompt` names or is, checked.

    Raises:
        UserError: it has not one `<question>` and then one `<answer>`, or has `<media>`: examples are text only.
    """
    template = prompt if ANSWER in prompt or " " in prompt else load(prompt)
    places = re.findall("|".join((MEDIA, QUESTION, EXAMPLES, ANSWER)), template)
    if places != [QUESTION, ANSWER]:
        raise UserError(
            f"Expected {QUESTION} and then {ANSWER}, each once, in the template of an example, which is text only; "
            f"found {template!r}. Change it."
        )
    return template


def fill_example(template: str, question: str, answer: str) -> str:
    """Returns an example as text."""
    values = {QUESTION: bare_question(question), ANSWER: answer.strip()}
    return re.sub(f"{QUESTION}|{ANSWER}", lambda found: values[found.group()], template)


def without_examples(template: str) -> str:
    """Returns the template without `<examples>` and the space after it."""
    return re.sub(rf"{EXAMPLES}\s*", "", template)


def split(template: str) -> tuple[str, str]:
    """Returns the text before the visual tokens, without its last spaces, and the text after them."""
    before, after = template.split(MEDIA)
    return before.rstrip(), after


def bare_question(question: str) -> str:
    """Returns the question without outer spaces and final question marks: the prompts write their own."""
    return re.sub(r"\s*\?*\s*$", "", question.strip())


def fill(template: str, media: str, question: str = "") -> str:
    """Returns the prompt as text, with words in the place of the visual tokens and without examples."""
    before, after = split(without_examples(template))
    return f"{before} {media}{after}".replace(QUESTION, bare_question(question))


def write(
    template: str,
    vocabulary: TextVocabulary,
    question: str | None = None,
    examples: str | None = None,
    num_media: int = 1,
) -> tuple[np.ndarray, str]:
    """Writes a prompt in the vocabulary's format.

    Args:
        template: from `resolve`.
        vocabulary: the model's.
        question: fills the template's `<question>`; None for a template without one.
        examples: text that fills its `<examples>`, if it has them; None writes none.
        num_media: images or videos at the place of `<media>`, one after another; 0 leaves nothing there.

    Returns:
        Its ids, int32 [n] with so many `MEDIA_ID`; and the same as plain text, with `<media>` for each.
    """
    before, after = split(template if examples is not None else without_examples(template))
    if examples is not None:
        before = before.replace(EXAMPLES, examples)
    text = template
    if question is not None:
        after = after.replace(QUESTION, bare_question(question))
        text = f"{before} {MEDIA}{after}"
    if num_media != 1:
        text = text.replace(MEDIA, " ".join([MEDIA] * num_media))
    return np.asarray([*vocabulary.head(before), *[MEDIA_ID] * num_media, *vocabulary.tail(after)], np.int32), text

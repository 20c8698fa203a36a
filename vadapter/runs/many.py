"""Many pictures and videos, with a question or without: a text of each, and a bad one costs no other its text."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vadapter.base.errors import UserError

if TYPE_CHECKING:  # the command reads its records before it waits for jax
    from vadapter.base.batch import Batch
    from vadapter.data.reading.conversations import Conversation
    from vadapter.generation.config import DecodingConfig
    from vadapter.runs.model import TrainedModel


@dataclasses.dataclass(frozen=True)
class Item:
    """What is asked.

    Attributes:
        media: path of a picture or a video.
        question: None asks for a caption.
        prompt: as of `TrainedModel.caption`; None is that of the training.
        error: why it cannot be asked at all; None if it can.
        own: whether the question is the item's own, so that one that does not fit is no mistake in the others.
        chat: in the place of media and question, a conversation that ends with the user's turn: `messages`, and maybe
            `images` and `videos`; see `vadapter.runs.chat.parse`.
        folder: that its paths are relative to.
    """

    media: str = ""
    question: str | None = None
    prompt: str | None = None
    error: str | None = None
    own: bool = False
    chat: Mapping[str, Any] | None = None
    folder: str = ""

    def conversation(self) -> "Conversation":
        """Returns the conversation. Raises `UserError` where its turns make no sense."""
        from vadapter.runs import chat

        media = dict(self.chat or {})
        return chat.parse(media.pop("messages"), media, self.folder)


@dataclasses.dataclass(frozen=True)
class Said:
    """What came of an item: a text, or why there is none."""

    text: str = ""
    error: str | None = None


def say(
    trained: "TrainedModel", items: Iterable[Item], decoding: "DecodingConfig | None" = None, rows: int = 8
) -> Iterator[Said]:
    """Captions pictures and videos, or answers questions about them.

    On one device they are decoded together (`vadapter.generation.continuous`); otherwise, and with beams, one by one.

    Args:
        trained: the model.
        items: their files are read as they are needed, a few ahead.
        decoding: default greedy, at most 32 tokens.
        rows: items that are decoded at the same time.

    Yields:
        What came of each item, in their order.

    Raises:
        UserError: a mistake that is not of one item, such as a prompt without `<media>`.
    """
    from vadapter.generation.config import DecodingConfig
    from vadapter.generation.continuous import unfit

    decoding = decoding or DecodingConfig()
    if unfit(trained.partitioner, decoding):
        for item in items:
            yield _one(trained, item, decoding)
        return
    items = list(items)
    done: dict[int, Said] = {}
    decoder = trained.continuous(decoding, rows, most_media=max(map(_media_of_chat, items), default=0))

    def prompts() -> "Iterator[tuple[Batch, int]]":
        for i, item in enumerate(items):
            if item.error is not None:
                done[i] = Said(error=item.error)
                continue
            try:
                prompt = _prompt(trained, item)
            except UserError as e:
                done[i] = _failed(item, e)
            else:
                yield prompt, i

    assert trained.vocabulary is not None
    at = 0
    for i, ids in decoder.texts(prompts()):
        done[i] = Said(trained.vocabulary.decode(ids).strip())
        while at in done:
            yield done.pop(at)
            at += 1
    while at in done:
        yield done.pop(at)
        at += 1


def _media_of_chat(item: Item) -> int:
    """The number of media of a conversation, 1 at least; 0 for others."""
    if item.chat is None or item.error is not None:
        return 0
    with contextlib.suppress(UserError):  # it is told when its turn comes
        return max(len(item.conversation().media), 1)
    return 0


def _prompt(trained: "TrainedModel", item: Item) -> "Batch":
    if item.chat is None:
        return trained.request(item.media, item.question, prompt=item.prompt)
    return trained.conversation(item.conversation())


def _one(trained: "TrainedModel", item: Item, decoding: "DecodingConfig") -> Said:
    if item.error is not None:
        return Said(error=item.error)
    try:
        if item.chat is not None:
            return Said(trained.chat(item.conversation(), decoding=decoding))
        if item.question is None:
            return Said(trained.caption(item.media, prompt=item.prompt, decoding=decoding))
        return Said(trained.answer(item.media, item.question, prompt=item.prompt, decoding=decoding))
    except UserError as e:
        return _failed(item, e)


def _failed(item: Item, error: UserError) -> Said:
    if item.own or is_of_a_file(error):
        return Said(error=str(error))
    raise error


def is_of_a_file(error: BaseException) -> bool:
    """Whether an error is of the file that was read, so that others may be sound."""
    from vadapter.data.reading.images import MediaError

    found: BaseException | None = error
    while found is not None and not isinstance(found, MediaError | OSError):
        found = found.__cause__
    return found is not None

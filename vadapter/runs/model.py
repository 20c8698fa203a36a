"""A trained model that captions, answers and says its loss."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.data.reading.conversations import Conversation
from vadapter.data.rows import memory, prompts
from vadapter.data.rows.memory import Media, Seen
from vadapter.data.rows.prompts import OBJECT
from vadapter.data.rows.sizes import WHOLE, Sizes, Views
from vadapter.data.rows.text_vocabulary import TextVocabulary
from vadapter.generation.config import DecodingConfig
from vadapter.generation.continuous import ContinuousDecoder
from vadapter.generation.decoding import make_generate
from vadapter.generation.words import Word, Words, make_words
from vadapter.models.vlm import VLMConfig
from vadapter.partitioning import Partitioner
from vadapter.partitioning.gather import local_rows
from vadapter.runs import chat
from vadapter.runs.batches import for_model
from vadapter.runs.chat import Read
from vadapter.runs.description import Description, Text

_PROMPTS = {False: ("caption",), True: ("image_question", "video_question")}


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained model on its devices: what `vadapter.load` gives.

    A picture is given as a PIL image, a uint8 array [h, w, 3] or the path of a file; a video as a list of pictures, an
    array [F, h, w, 3] or the path of a file. Several of them in a list are one batch.

    All methods show pictures as the training did. Where that was on conversations, a picture has its tiles behind it
    (`chat_task.max_tiles`), and a question is a turn of the user's; a prompt that another task was trained on shows the
    picture as that task did.

    Attributes:
        model: the module; an implementation of attention that this machine lacks is replaced.
        params: all parameters.
        partitioner: places batches.
        description: what has to be known to use it (`model.json`).
        vocabulary: of its text; None for a model without text.
        step: updates that it had.
        folder: of the run or bundle.
    """

    model: Any
    params: Any
    partitioner: Partitioner
    description: Description
    vocabulary: TextVocabulary | None
    step: int
    folder: str
    _generators: dict[DecodingConfig, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    _words: dict[int, Words] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def caption(
        self, images: Media | list[Media], *, prompt: str | None = None, decoding: DecodingConfig | None = None
    ) -> Any:
        """Says what pictures or videos show.

        Args:
            images: one, or a list of several.
            prompt: a name in data/prompts, or a template with `<media>`; default the one of the training.
            decoding: how texts are chosen; default greedy, at most 32 tokens.

        Returns:
            A text; for a list, a list of texts in its order.

        Raises:
            UserError: the model does not read images and write text; an image cannot be read (named by its place in
                the list); or the prompt is longer than the model's `inputs`.
        """
        return self._ask(images, None, prompt, decoding)

    def answer(
        self,
        images: Media | list[Media],
        question: str | Sequence[str],
        *,
        prompt: str | None = None,
        decoding: DecodingConfig | None = None,
    ) -> Any:
        """Answers a question about pictures or videos.

        Args:
            images: one, or a list of several.
            question: for all of them, or one each.
            prompt: a name in data/prompts, or a template with `<media>` and `<question>`; default the one of the
                training.
            decoding: how texts are chosen; default greedy, at most 32 tokens.

        Returns:
            A text; for a list of images, a list of texts in its order.

        Raises:
            UserError: as `caption`; or there are not as many questions as images.
        """
        return self._ask(images, question, prompt, decoding)

    def chat(
        self, messages: Sequence[Mapping[str, Any]] | Conversation, *, decoding: DecodingConfig | None = None
    ) -> str:
        """Answers the last turn of a conversation with any number of images and videos.

        Args:
            messages: see `vadapter.runs.chat.batch`.
            decoding: how texts are chosen; default greedy, at most 32 tokens.

        Returns:
            The answer; add it as the assistant's turn to ask on.

        Raises:
            UserError: as `vadapter.runs.chat.batch`, or the model does not read images and write text.
        """
        text, vocabulary = self._speech()
        rows = self.partitioner.batch_ways // self.partitioner.host_share[1]
        known = self.description
        views = {"max_tiles": known.max_tiles, "clips": known.clips}
        batch = chat.batch(messages, vocabulary, text.lengths, self.sizes, known.resize, rows, **views)
        batch = self.partitioner.put_batch(batch)
        ids = local_rows(self._generate(decoding or DecodingConfig())(self.params, batch))
        return vocabulary.decode(ids[0].tolist()).strip()

    def loss(
        self,
        images: Sequence[Media],
        texts: Sequence[str],
        questions: str | Sequence[str] | None = None,
        *,
        prompt: str | None = None,
    ) -> np.ndarray:
        """Measures how well the model knows texts.

        Args:
            images: pictures or videos.
            texts: the caption, or the answer, of each.
            questions: for all of them, or one each; None for captions.
            prompt: as of `caption` or `answer`.

        Returns:
            f32 [number of images]: nats a token of the text, its end token included.

        Raises:
            UserError: as `caption`; or a text is longer than the model's `targets`, or there are not as many texts as
                images.
        """
        images = self._read(images, questions is not None, prompt)
        if len(texts) != len(images):
            raise UserError(f"Expected a text for each of {len(images)} images; found {len(texts)}. Give one each.")
        found = np.zeros(len(images), np.float32)
        for places in memory.by_kind(images):
            batch = self._batch(images, places, prompt, questions, texts)
            found[places] = local_rows(self._row_losses(batch))[: len(places)]
        return found

    def words(self, images: Media | list[Media], count: int = 3) -> Any:
        """Finds the words that are nearest to what the language model reads of pictures or videos.

        Args:
            images: one, or a list of several.
            count: words of each soft token.

        Returns:
            For each soft token, those of tiles last, a list of (text, cosine similarity with the word's embedding), the
            nearest first; for a list of images, a list of these in its order. Of an id that the vocabulary does not
            have, the text is "#" and the id.

        Raises:
            UserError: as `caption`; or `count` is below 1, or more than the decoder's table has words.
        """
        _, vocabulary = self._speech()
        if count not in self._words:
            self._words[count] = make_words(self.model, self.partitioner, vocabulary.word, count)
        many = isinstance(images, list)
        given = self._read(images if many else [images], False, None)
        found: list[list[list[Word]]] = [[] for _ in given]
        for places in memory.by_kind(given):
            rows = self._words[count](self.params, self._batch(given, places, None, None, None))
            for place, row in zip(places, rows, strict=False):
                found[place] = [list(token) for token in row[: self.soft_tokens(given[place])]]
        return found if many else found[0]

    def seen(self, image: Media, question: str | None = None, *, prompt: str | None = None) -> Seen:
        """Reads a picture or video as the model is shown it where it is captioned or asked about.

        Args:
            image: as of `caption`.
            question: None is for a caption.
            prompt: as of `caption` or `answer`.

        Raises:
            UserError: as `caption`.
        """
        return self._read([image], question is not None, prompt)[0]

    def soft_tokens(self, seen: Seen) -> int:
        """Returns the number of soft tokens that a picture, with its tiles, or a video becomes."""
        return len(seen.frames) * self.sizes.visual_tokens(seen.frames.shape[1])

    def request(
        self, image: Media, question: str | None = None, *, prompt: str | None = None, num_media: int = 0
    ) -> Batch:
        """Makes the prompt of one picture or video, for a decoder of `continuous`.

        Args:
            image: as of `caption`.
            question: None asks for a caption.
            prompt: as of `caption` or `answer`.
            num_media: room for a picture with its tiles; 0 is as much as it needs.

        Returns:
            One row on the host.

        Raises:
            UserError: as `caption`.
        """
        given = self._read([image], question is not None, prompt)
        return self._rows(given, [0], prompt, question, None, num_media)

    def conversation(self, found: Conversation, read: Read | None = None) -> Batch:
        """Makes the prompt of a conversation, for a decoder of `continuous`.

        One picture or video without a word asks for a caption, and one with words is a question about it, as `caption`
        and `answer` have it: the texts are then theirs. All other conversations, and all words to a model that was
        trained on chats, are laid out as `chat` does it.

        Args:
            found: as `vadapter.runs.chat.parse` gives it, without tiles.
            read: as of `vadapter.runs.chat.read_media`.

        Returns:
            One row on the host.

        Raises:
            UserError: as `vadapter.runs.chat.batch`; or the model does not read images and write text.
        """
        text, vocabulary = self._speech()
        known, asked = self.description, found.turns[0][1].replace(OBJECT, "").strip()
        if len(found.turns) == 2 and len(found.media) == 1 and not (known.chats and asked):
            views = self._views(bool(asked), None)
            shown = chat.read_media(chat.tiled(found, views.max_tiles), self.sizes, known.resize, read)
            video = shown[0].ndim == 4
            frames = self.sizes.num_frames if views.clips else 1
            seen = Seen(shown[0][None], video=True) if video else memory.still(shown, frames)
            return self._rows([seen], [0], None, asked or None, None)
        found = chat.tiled(found, known.max_tiles)
        media = chat.read_media(found, self.sizes, known.resize, read)
        return chat.lay_out(found.turns, media, vocabulary, text.lengths, self.sizes, clips=known.clips)

    def continuous(
        self, decoding: DecodingConfig | None = None, rows: int = 8, chunk: int = 16, most_media: int = 0
    ) -> ContinuousDecoder:
        """Makes a decoder of requests that come one by one, several at a time.

        Args:
            decoding: default greedy, at most 32 tokens.
            rows: requests that run at the same time.
            chunk: tokens of a request that one step gives at most.
            most_media: pictures and videos of a `conversation`, without tiles; with 0 there is room for requests of
                `request` alone.

        Raises:
            UserError: as `ContinuousDecoder`; or the model does not read images and write text.
        """
        text, vocabulary = self._speech()
        most = max(most_media, 1) * (1 + self.description.max_tiles)
        so_far = text.lengths["targets"] if most_media else 0  # a conversation has answers in its prompt
        return ContinuousDecoder(
            self.model,
            self.params,
            decoding,
            end_ids=vocabulary.ends,
            slots=text.lengths["inputs"] + so_far + most * _most_visual_tokens(self.sizes),
            rows=rows,
            chunk=chunk,
            partitioner=self.partitioner,
        )

    @property
    def sizes(self) -> Sizes:
        """What the model takes: resolution, frames, visual tokens."""
        return for_model(self.description.model)

    def prompt(self, question: bool, video: bool) -> str | None:
        """Returns the template that the model was trained on, or else the name of the shipped one.

        None is a turn of a conversation: so is every question to a model that was trained on these.
        """
        if question and self.description.chats:
            return None
        trained = self.description.text.prompts if self.description.text else {}
        names = _PROMPTS[question][:: -1 if video else 1]
        return next((trained[name] for name in names if name in trained), _PROMPTS[question][0])

    def _views(self, question: bool, prompt: str | None) -> Views:
        """How a picture is seen where it is asked about by this prompt, or by that of the training."""
        views = self.description.views
        template = prompt or self.prompt(question, video=False)
        if views == WHOLE or template is None:
            return views
        return views.of(prompts.resolve(template, question))

    def check_data(self, mixture: str) -> None:
        """Raises `UserError` unless the data of a registered mixture have the vocabulary of the model."""
        from vadapter.data import mixture_description

        text, found = self.description.text, mixture_description.describe(mixture)
        if text and found.get("sha256") != text.sha256:
            raise UserError(
                f"{self.folder} was trained with a vocabulary whose sha256 is {text.sha256}; the data that it is to "
                f"read have {found.get('sha256', 'no text')}. Give them the vocabulary of the model "
                f"({text.vocabulary or 'the shipped one'}, relative to {self.folder})."
            )

    def _speech(self) -> tuple[Text, TextVocabulary]:
        model, text = self.description.model, self.description.text
        if not isinstance(model, VLMConfig) or model.encoder is None or text is None or self.vocabulary is None:
            raise UserError(
                f"{self.folder} holds a model that does not read images and write text. Give a run of stage 1 or 2."
            )
        return text, self.vocabulary

    def _ask(self, images: Any, question: Any, prompt: str | None, decoding: DecodingConfig | None) -> Any:
        _, vocabulary = self._speech()
        many = isinstance(images, list)
        given = self._read(images if many else [images], question is not None, prompt)
        texts = [""] * len(given)
        for places in memory.by_kind(given):
            batch = self._batch(given, places, prompt, question, None)
            ids = local_rows(self._generate(decoding or DecodingConfig())(self.params, batch))
            for place, row in zip(places, ids, strict=False):
                texts[place] = vocabulary.decode(row.tolist()).strip()
        return texts if many else texts[0]

    def _read(self, images: Sequence[Media], question: bool, prompt: str | None) -> list[Seen]:
        self._speech()
        return memory.read(images, self.sizes, self.description.resize, self._views(question, prompt))

    def _batch(self, images: list[Seen], places: list[int], prompt: str | None, questions: Any, texts: Any) -> Batch:
        """The images at these places as a batch on devices; the last is repeated until the mesh divides the rows."""
        ways = self.partitioner.batch_ways // self.partitioner.host_share[1]
        rows = places + places[-1:] * (-len(places) % ways)
        return self.partitioner.put_batch(self._rows(images, rows, prompt, questions, texts))

    def _rows(
        self, images: list[Seen], rows: list[int], prompt: str | None, questions: Any, texts: Any, num_media: int = 0
    ) -> Batch:
        """The images at these places as a batch on the host."""
        text, vocabulary = self._speech()

        def chosen(given: Any) -> Any:
            if given is None or isinstance(given, str):
                return given
            if len(given) != len(images):
                raise UserError(
                    f"Expected one question, or one for each of {len(images)} images; found {len(given)} questions."
                )
            return [given[i] for i in rows]

        return memory.batch(
            [images[i] for i in rows],
            prompt or self.prompt(questions is not None, images[rows[0]].video),
            chosen(texts),
            chosen(questions),
            vocabulary=vocabulary,
            lengths=text.lengths,
            sizes=self.sizes,
            num_media=num_media,
        )

    def _generate(self, decoding: DecodingConfig) -> Any:
        if decoding not in self._generators:
            _, vocabulary = self._speech()
            made = make_generate(self.model, self.partitioner, decoding, end_ids=vocabulary.ends)
            self._generators[decoding] = made
        return self._generators[decoding]

    def _row_losses(self, batch: Batch) -> Any:
        def losses(params: Any, batch: Batch) -> Any:
            logits = self.model.apply({"params": params}, batch, method="logits")
            chosen = jnp.take_along_axis(logits, batch.target_ids[..., None], axis=-1)[..., 0]
            nats = (jax.nn.logsumexp(logits, axis=-1) - chosen) * batch.target_weights
            return nats.sum(axis=1) / jnp.maximum(batch.target_weights.sum(axis=1), 1)

        with self.partitioner.activate():
            return jax.jit(losses, out_shardings=self.partitioner.batch_sharding)(self.params, batch)


def _most_visual_tokens(sizes: Sizes) -> int:
    counts = sizes.num_visual_tokens
    return counts if isinstance(counts, int) else max(counts.values())

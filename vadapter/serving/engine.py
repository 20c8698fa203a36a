"""One thread owns the device: it decodes the requests of all models, those of a model together."""

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping

import numpy as np

from vadapter.base.batch import Batch
from vadapter.data.reading.conversations import Conversation, File
from vadapter.data.rows.prompts import OBJECT
from vadapter.generation.config import DecodingConfig
from vadapter.generation.continuous import Piece
from vadapter.runs.model import TrainedModel
from vadapter.serving.limits import Limits

LOGGER = logging.getLogger("vadapter.serving")
_STREAMED = 2  # tokens of a step while somebody watches them come
_WHOLE = 16  # and otherwise: fewer steps, each with more tokens
_CHAT_MEDIA = 4


@dataclasses.dataclass(frozen=True)
class Ticket:
    """A request that was taken. `number` names it among those of its model."""

    model: str
    number: int


@dataclasses.dataclass(frozen=True)
class Failed:
    """The last that is heard of a request whose step failed."""


Told = Piece | Failed
Tell = Callable[[Told], None]


class Lane:
    """A model and its decoder.

    Args:
        trained: the model.
        limits: of the server.
        decoding: see `Engine`.

    Attributes:
        trained: the model.
        media: images and videos of a request at most.
        decoder: of the thread of the engine.
    """

    def __init__(self, trained: TrainedModel, limits: Limits, decoding: DecodingConfig):
        self.trained = trained
        self.media = limits.media or (_CHAT_MEDIA if trained.description.chats else 1)
        decoding = dataclasses.replace(decoding, method="sample", max_new_tokens=limits.new_tokens)
        self.decoder = trained.continuous(decoding, limits.rows, most_media=self.media)
        self.tells: dict[int, tuple[Tell, bool]] = {}

    @property
    def chunk(self) -> int:
        """Tokens of the next step."""
        return _STREAMED if any(streams for _, streams in list(self.tells.values())) else _WHOLE

    def caption(self, grey: int) -> Batch:
        """The prompt of a picture that is grey all over: 0 is black, 255 white."""
        size = self.trained.sizes.image_size
        picture = np.full((size, size, 3), grey, np.uint8)
        found = Conversation("it", (("user", OBJECT), ("assistant", ".")), (File("image"),))
        return self.trained.conversation(found, lambda *_: picture)


class Engine:
    """Decodes requests in a thread of its own, from `start` until `stop`.

    Args:
        models: by name.
        limits: of the server.
        decoding: what requests do not choose, such as drafts; the method is `sample`, and `limits` bounds the tokens.

    Raises:
        UserError: a model does not read images and write text, needs several devices, or cannot give the drafts.
    """

    def __init__(self, models: Mapping[str, TrainedModel], limits: Limits, decoding: DecodingConfig | None = None):
        decoding = decoding or DecodingConfig()
        self.lanes = {name: Lane(trained, limits, decoding) for name, trained in models.items()}
        self._wake = threading.Condition()  # guards `tells` of all lanes too
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="engine")

    def warm_up(self) -> None:
        """Compiles what a caption needs, before anybody waits for it. Call it before `start`.

        The first picture is read into new rows, the second into used ones, and the third is known: three programs.
        """
        for lane in self.lanes.values():
            for grey, temperature in ((0, 0.0), (255, 0.0), (255, 1.0)):
                lane.decoder.submit(lane.caption(grey), min(2, lane.decoder.most_new_tokens), temperature=temperature)
                while lane.decoder.busy:
                    lane.decoder.step()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread when what it has is done, and waits for that."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def submit(
        self,
        model: str,
        prompt: Batch,
        limit: int,
        tell: Tell,
        *,
        temperature: float,
        top_p: float,
        seed: int,
        streams: bool,
    ) -> Ticket:
        """Adds a request.

        Args:
            model: its name.
            prompt: as of `ContinuousDecoder.submit`.
            limit: tokens of the answer.
            tell: is called in the engine's thread with every piece; the last has ended, or is `Failed`.
            temperature, top_p, seed: as of `ContinuousDecoder.submit`.
            streams: whether pieces are wanted as early as possible.

        Raises:
            UserError: as `ContinuousDecoder.submit`.
        """
        lane = self.lanes[model]
        with self._wake:
            number = lane.decoder.submit(prompt, limit, temperature=temperature, top_p=top_p, seed=seed)
            lane.tells[number] = tell, streams
            self._wake.notify()
        return Ticket(model, number)

    def cancel(self, ticket: Ticket) -> None:
        """Gives a request up: nothing more is told of it, and its row is free at the next step."""
        lane = self.lanes[ticket.model]
        with self._wake:
            if lane.tells.pop(ticket.number, None) is not None:
                lane.decoder.cancel(ticket.number)

    def counts(self, model: str) -> tuple[int, int]:
        """Returns how many requests of a model run and how many wait."""
        lane = self.lanes[model]
        waiting = lane.decoder.waiting
        return max(len(lane.tells) - waiting, 0), waiting

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or self._busy())
                if not self._busy():
                    return
            for name, lane in self.lanes.items():
                if lane.decoder.busy:
                    self._step(name, lane)

    def _busy(self) -> bool:
        return any(lane.decoder.busy for lane in self.lanes.values())

    def _step(self, name: str, lane: Lane) -> None:
        try:
            pieces = lane.decoder.step(lane.chunk)
        except Exception:  # of the device or of a fault: whatever ran is lost, and what comes next may be sound
            LOGGER.exception("A step of %s failed; its requests are lost.", name)
            with self._wake:
                lost = list(lane.tells.values())
                lane.tells.clear()
                lane.decoder.reset()
            for tell, _ in lost:
                tell(Failed())
            return
        for piece in pieces:
            with self._wake:
                tell, _ = (lane.tells.pop if piece.ended else lane.tells.get)(piece.request, (None, False))
            if tell is not None:
                tell(piece)

"""The text of an answer while its tokens come: what is told is never taken back."""

from collections.abc import Iterable, Sequence

from vadapter.data.rows.text_vocabulary import TextVocabulary

_PART = "\ufffd"  # what the bytes of a letter are until its last token is there


class AnswerText:
    """Decodes the tokens of one answer as they come.

    The pieces together are the text that `vadapter infer` gives of the same tokens, up to a stop.

    Attributes:
        ids: all tokens so far.
        text: what is certain of them by now. At the end it is the whole text, also where a tokenizer takes back what
            it said, of which the pieces lack the rest then.
        stopped: whether one of the stops came.

    Args:
        vocabulary: the model's.
        stops: the answer ends before any of these texts.
    """

    def __init__(self, vocabulary: TextVocabulary, stops: Sequence[str] = ()):
        self._vocabulary, self._stops = vocabulary, tuple(stops)
        self._held = max(map(len, stops), default=1) - 1  # characters that may begin a stop
        self._told = self.text = ""
        self.ids: list[int] = []
        self.stopped = False

    def add(self, ids: Iterable[int], last: bool = False) -> str:
        """Takes new tokens and returns the text that is certain by now; of the last ones, all that is left."""
        if self.stopped:
            return ""
        self.ids += ids
        text = self._vocabulary.decode(self.ids).strip()
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, text = True, text[: min(found)].rstrip()
        elif not last:
            text = text.rstrip(_PART)
            text = text[: max(len(text) - self._held, 0)].rstrip()
        self.text = text
        if not text.startswith(self._told):  # a tokenizer that takes back what it said
            return ""
        new, self._told = text[len(self._told) :], text
        return new

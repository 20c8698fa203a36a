"""A model class for VLMEvalKit (github.com/open-compass/VLMEvalKit, on no registry), which runs its benchmarks on a
bundle. A script in its checkout:

    from vadapter.contrib import vlmevalkit

    vlmevalkit.register("owl", bundle="bundles/owl", inputs=1024)
    import run

    run.load_env()
    run.main()

then `python script.py --data MMStar --model owl`. See docs/howto.md.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

try:
    from vlmeval.vlm.base import BaseModel
except ImportError as e:
    raise ImportError(
        f"vadapter.contrib.vlmevalkit is for VLMEvalKit, which is not installed whole ({e}). In a checkout of "
        "github.com/open-compass/VLMEvalKit run: pip install -e ."
    ) from e

from vadapter.base.errors import UserError
from vadapter.contrib.asking import Asker, decoding_of


class Vadapter(BaseModel):
    """A trained model of vadapter as one of VLMEvalKit's, with images and text in any order; greedy.

    A question about one image or video is asked in the prompt of the training, so its answer is that of `vadapter
    infer`.
    """

    INTERLEAVE = True
    VIDEO_LLM = True

    def __init__(
        self,
        bundle: str = "",
        encoder: str = "",
        decoder: str = "",
        prompt: str = "",
        inputs: int = 0,
        max_new_tokens: int = 32,
    ):
        """Args:
            bundle: a bundle, or a run.
            encoder, decoder: as of `vadapter.load`.
            prompt: a name in data/prompts, or a template with `<media>` and `<question>`.
            inputs: room for a question's tokens; 0 is that of the training.
            max_new_tokens: longest answer.

        Raises:
            UserError: as `Asker`.
        """
        super().__init__()
        self._asker = Asker(bundle, encoder, decoder, prompt, inputs)
        self._decoding = decoding_of({}, max_new_tokens)

    def generate_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """Returns the answer to a message: parts with `type`, text, image or video, and `value`, a text or a path."""
        del dataset
        return self._asker.ask([(part["type"], part["value"]) for part in message], self._decoding)


def register(name: str, **settings: Any) -> None:
    """Makes a model known to VLMEvalKit by a name, for `--model`.

    Args:
        name: of the model.
        settings: those of `Vadapter`. The model is read when it is asked first.

    Raises:
        UserError: another model has the name.
    """
    from vlmeval.config import supported_VLM

    if name in supported_VLM:
        raise UserError(f"There is a model {name!r} in VLMEvalKit already. Give another name.")
    supported_VLM[name] = functools.partial(Vadapter, **settings)

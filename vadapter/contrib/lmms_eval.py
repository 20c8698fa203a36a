"""A model class for lmms-eval (`pip install lmms-eval`), which runs its benchmarks on a bundle:

    python -m lmms_eval --model vadapter --model_args bundle=bundles/owl,inputs=1024 --tasks mme --batch_size 8

See docs/howto.md.
"""

from collections.abc import Sequence
from typing import Any

try:
    from lmms_eval.api.model import lmms
    from lmms_eval.models.registry_v2 import ModelManifest
except ImportError as e:
    raise ImportError(
        f"vadapter.contrib.lmms_eval is for lmms-eval, which is not installed whole ({e}). Run: pip install lmms-eval"
    ) from e

from vadapter.base.errors import UserError
from vadapter.contrib.asking import Asker, decoding_of, interleaved


class Vadapter(lmms):
    """A trained model of vadapter as one of lmms-eval's: it generates, greedily unless a task says otherwise.

    A question about one image or video is asked in the prompt of the training, so its answer is that of `vadapter
    infer`. Log-likelihoods and several rounds are not there, and tasks that need them stop with a sentence.
    """

    is_simple = True

    def __init__(
        self,
        bundle: str = "",
        encoder: str = "",
        decoder: str = "",
        prompt: str = "",
        inputs: int = 0,
        max_new_tokens: int = 0,
        batch_size: int | str = 8,
        **others: Any,
    ):
        """Args:
            bundle: a bundle, or a run.
            encoder, decoder: as of `vadapter.load`.
            prompt: a name in data/prompts, or a template with `<media>` and `<question>`.
            inputs: room for a question's tokens; 0 is that of the training.
            max_new_tokens: longest answer; 0 is as the task says.
            batch_size: questions that are asked at the same time.
            others: what lmms-eval hands every model (`device`, `max_batch_size`); unused.

        Raises:
            UserError: as `Asker`, an argument is not known, or `batch_size` is no number of at least 1.
        """
        super().__init__()
        unknown = sorted({*others} - {"device", "max_batch_size"})
        if unknown:
            raise UserError(
                f"Expected the model_args bundle, encoder, decoder, prompt, inputs and max_new_tokens; found "
                f"{', '.join(unknown)}. Leave that out."
            )
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"Expected batch_size to be a number of at least 1; found {batch_size!r}. Change it.")
        self._asker = Asker(bundle, encoder, decoder, prompt, inputs)
        self._rows, self._longest = int(batch_size), max_new_tokens

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Returns the answer to each request, cut where a text of its `until` begins.

        A request's arguments are (text, settings, what gives the visuals of a document, its id, task, split).
        """
        said: list[str] = [""] * len(requests)
        groups: dict[Any, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(decoding_of(request.args[1], self._longest), []).append(i)
        for decoding, places in groups.items():
            for start in range(0, len(places), self._rows):
                chosen = places[start : start + self._rows]
                questions = [interleaved(requests[i].args[0], self._visuals(requests[i].args)) for i in chosen]
                for i, text in zip(chosen, self._asker.ask_all(questions, decoding), strict=True):
                    settings = requests[i].args[1]
                    said[i] = _until(text, settings.get("until"))
                    self.cache_hook.add_partial("generate_until", (requests[i].args[0], settings), said[i])
        return said

    def _visuals(self, arguments: Sequence[Any]) -> list[Any]:
        _, _, doc_to_visual, doc_id, task, split = arguments
        found = doc_to_visual(self.task_dict[task][split][doc_id])
        return [x for x in found if x is not None] if found else []

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Is not there."""
        raise UserError("Expected a task that generates; vadapter gives lmms-eval no log-likelihoods. Choose another.")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Is not there."""
        raise UserError("Expected a task of one round; vadapter gives lmms-eval no several ones. Choose another.")


def _until(text: str, stops: str | Sequence[str] | None) -> str:
    for stop in [stops] if isinstance(stops, str) else stops or ():
        text = text.split(stop)[0] if stop else text
    return text


def manifest() -> ModelManifest:
    """What lmms-eval's registry knows the class by: `--model vadapter`. It finds this by vadapter's entry point."""
    return ModelManifest("vadapter", simple_class_path="vadapter.contrib.lmms_eval.Vadapter")

"""An experiment, and the objects that a command makes of it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
from flax import linen as nn

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.base.evaluator import Evaluator
from vadapter.benchmarks import table
from vadapter.data.order.config import LoaderConfig
from vadapter.data.order.loader import Loader
from vadapter.data.reading.features import Store
from vadapter.data.rows.sizes import Sizes, Views
from vadapter.data.rows.tiny_text import TinyWriter
from vadapter.evaluation import metrics
from vadapter.evaluation.loss_evaluators import LossEvaluator, RelianceEvaluator
from vadapter.evaluation.scoring import PLAIN, Scoring
from vadapter.evaluation.text_evaluator import GenerationEvaluator
from vadapter.generation.decoding import DecodingConfig, make_generate
from vadapter.generation.stream import make_stream, pays
from vadapter.generation.words import make_words
from vadapter.models import flops
from vadapter.models.configuration import ModelConfig
from vadapter.models.losses import ObjectiveConfig
from vadapter.partitioning import DEFAULT_RULES, MeshConfig, Partitioner, abstract_params, make_mesh
from vadapter.runs import tiny_text
from vadapter.runs.batches import for_model
from vadapter.runs.handoff import Handoff
from vadapter.training import loop, objectives, waiting
from vadapter.training.program import Program
from vadapter.training.sources import Source
from vadapter.training.storage import Storage, trained_paths

EvaluationKind = Literal["loss", "generation", "reliance"]
_SOFT_TOKENS = 64  # of a picture whose words are shown; a video may have thousands


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run.

    Attributes:
        data: what it reads; sizes are the model's.
        kind: `loss` (loss, accuracy, perplexity), `generation` (CIDEr, exact match, VQA accuracy) or
            `reliance` (loss with the right, a shuffled and a blank image).
        name: of its scalars; `val` is the loss curve of the report.
        every_steps: steps between two calls in training; None takes the loop's interval, 0 is at the end only.
        decoding: how texts are generated.
        benchmark: name of the benchmark that the data are of, for its official scores and submission; "" gives those of
            `kind`.
        metrics: names of further registered metrics of generated texts.
        words: of kind `generation`: how many nearest words of each soft token the report shows beside a picture; 0 is
            none. They are found for the first pictures only, of each the first 64 soft tokens.
    """

    data: LoaderConfig
    kind: EvaluationKind = "loss"
    name: str = "val"
    every_steps: int | None = None
    decoding: DecodingConfig = DecodingConfig()
    benchmark: str = ""
    metrics: Sequence[str] = ()
    words: int = 3

    def scoring(self) -> Scoring:
        """How generated texts are scored. Raises `UserError` where the benchmark or a metric is not known."""
        scoring = table.benchmark(self.benchmark).protocol if self.benchmark else PLAIN
        return scoring.having([metrics.metric(name) for name in self.metrics])


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole run. `gin/runs/train.gin` fills it from the macros that experiments set.

    Attributes:
        model: for example a VLM, a language model (a VLM without encoder) or a classifier.
        model_dir: folder of the run.
        data: what it trains on; sizes are the model's.
        train: loop, freezing and optimizer.
        objective: the language-modelling loss.
        sources: other runs that parameters are taken from.
        evaluations: in training and at its end.
        mesh: how devices are laid out.
        rules: where logical axes lie on the mesh.
        seed: seed of the random parameters.
        resume_step: the kept checkpoint to go back to, instead of going on from the newest; later ones are deleted.
        bundle: folder of an adapter bundle that what is trained starts from.
        handoff: how the adapter's first values fit the language models on both of its sides; None leaves them as the
            sources and the model's own initialisation give them.
        feature_cache: folder that `vadapter cache` wrote, which training reads in place of pictures and videos; None
            reads these. It changes neither the order of the data nor what evaluations read.
        tiny_lm: MODEL_DIR of stage 1, or the imported folder of a language model, whose tokeniser writes each row for
            the tiny LM in the adapter too; needed by `ObjectiveConfig.tiny_loss`, also where the run goes on.
    """

    model: ModelConfig
    model_dir: str
    data: LoaderConfig
    train: loop.TrainConfig
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    sources: tuple[Source, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    rules: Sequence[tuple[str, Any]] = DEFAULT_RULES
    seed: int = 0
    resume_step: int | None = None
    bundle: str | None = None
    handoff: Handoff | None = None
    feature_cache: str | None = None
    tiny_lm: str | None = None


@dataclasses.dataclass
class Parts:
    """What a command needs of an experiment, each made when first asked for.

    Attributes:
        experiment: its settings.
        resize: how pictures become square where a data set does not say it; None is the encoder's way.
        views: how evaluations show pictures whose data set does not say it; None is as the training data have it.
    """

    experiment: Experiment
    resize: str | None = dataclasses.field(default=None, kw_only=True)
    views: Views | None = dataclasses.field(default=None, kw_only=True)

    @functools.cached_property
    def partitioner(self) -> Partitioner:
        return Partitioner(make_mesh(self.experiment.mesh), tuple(self.experiment.rules))

    @functools.cached_property
    def model(self) -> nn.Module:
        return self.experiment.model.make()

    @functools.cached_property
    def objective(self) -> objectives.Objective:
        return objectives.make_objective(self.model, self.experiment.objective)

    @functools.cached_property
    def loader(self) -> Loader:
        """The training data."""
        return self.make_loader(self.experiment.data, self.features)

    @functools.cached_property
    def eval_sizes(self) -> Sizes:
        """What the model takes in evaluations."""
        from vadapter.data import mixture_description

        views = mixture_description.views(self.experiment.data.mixture) if self.views is None else self.views
        return dataclasses.replace(self.sizes, views=views)

    @property
    def sizes(self) -> Sizes:
        """What the model takes in training."""
        sizes = for_model(self.experiment.model)
        return dataclasses.replace(sizes, resize=self.resize or sizes.resize, tiny=self.tiny)

    @functools.cached_property
    def tiny(self) -> TinyWriter | None:
        """What writes rows for the tiny LM's own loss, where there is one."""
        return tiny_text.writer(self.experiment)

    def make_loader(self, data: LoaderConfig, features: Store | None = None, sizes: Sizes | None = None) -> Loader:
        """Makes a loader whose sizes are the model's.

        Args:
            data: what it reads.
            features: a cache that training reads in place of media.
            sizes: default those of training.

        Raises:
            UserError: its batch does not fit the mesh, or its vocabulary not the decoder's table.
        """
        self.partitioner.check_rows(data.batch_size)
        model = self.experiment.model
        loader = Loader(data, sizes or self.sizes, *self.partitioner.host_share, features)
        if model.vocab_size is not None and loader.vocabulary.rows > model.vocab_size:
            raise UserError(
                f"{loader.vocabulary} has ids up to {loader.vocabulary.rows - 1}; the decoder's table has "
                f"{model.vocab_size} rows. Give the tokenizer that belongs to the decoder (VOCABULARY)."
            )
        return loader

    @functools.cached_property
    def example(self) -> Any:
        """Shapes of a global batch."""
        data = self.experiment.data
        example = packed_example(self.experiment.model.example_batch(data.batch_size, data.lengths), data)
        return tiny_text.example(self.experiment, example)

    @functools.cached_property
    def features(self) -> Store | None:
        """The feature cache of the training data. Raises `UserError` where it is stale or not whole."""
        from vadapter.runs import feature_cache

        return feature_cache.opened(self.experiment, self) if self.experiment.feature_cache else None

    @functools.cached_property
    def boxed(self) -> Any:
        """The model's abstract parameters."""
        return abstract_params(self.model, self.example)

    @functools.cached_property
    def shapes(self) -> dict[str, Any]:
        """`{slash path: shape struct}` of all parameters."""
        return trees.flatten(nn.unbox(self.boxed))

    @functools.cached_property
    def trained(self) -> frozenset[str]:
        """Paths of the parameters that are trained."""
        return trained_paths(self.boxed, self.experiment.train.trainable)

    @functools.cached_property
    def storage(self) -> Storage:
        """How each parameter is kept."""
        return Storage.of(self.boxed, self.partitioner, self.trained, self.experiment.train.frozen_dtype)

    @functools.cached_property
    def program(self) -> Program:
        """The training step."""
        example = self.example
        if self.features is not None:
            from vadapter.runs import feature_cache

            example = feature_cache.example(self.features, example)
        return self.experiment.train.program(self.model, example, self.objective, self.partitioner, self.boxed)

    @functools.cached_property
    def loss_sums(self) -> Any:
        """Jitted `(params, batch) -> sums over the global batch`."""
        return self._sums(self.objective)

    @functools.cached_property
    def decoder_sums(self) -> Any:
        """`loss_sums` of the decoder alone, without the tiny LM's own loss."""
        settings = self.experiment.objective
        if not settings.tiny_loss:
            return self.loss_sums
        return self._sums(objectives.make_objective(self.model, dataclasses.replace(settings, tiny_loss=0.0)))

    def _sums(self, objective: objectives.Objective) -> Any:
        run = jax.jit(objective, out_shardings=self.partitioner.replicated)

        def sums(params: Any, batch: Any) -> Any:
            with self.partitioner.activate():
                return run(params, batch)

        return sums

    def flops(self) -> flops.FlopsOf:
        """Counts the FLOPs of a batch by part."""
        abstract, trainable = trees.unflatten(self.program.shapes), self.program.storage.trained
        return self.experiment.model.flops(abstract, trainable)

    def evaluators(self) -> list[Evaluator]:
        """Makes the experiment's evaluators."""
        return [self.evaluator(e) for e in self.experiment.evaluations]

    def evaluator(self, evaluation: Evaluation) -> Evaluator:
        """Makes one evaluator. Raises `UserError` where the kind does not fit the model."""
        if evaluation.data.packing:
            raise UserError(
                f"Expected evaluation {evaluation.name!r} without packing, which is for training; found "
                "LoaderConfig.packing. Set train/LoaderConfig.packing alone."
            )
        tiny = self.tiny if evaluation.kind == "loss" else None
        loader = self.make_loader(evaluation.data, sizes=dataclasses.replace(self.eval_sizes, tiny=tiny))

        def watched(batches: Callable[[], Iterator[Any]]) -> Callable[[], Iterator[Any]]:
            patience = self.experiment.train.data_patience
            return waiting.watched(batches, f"the data of {evaluation.name}", patience, self.experiment.model_dir)

        batches = watched(remembered(loader.eval_batches))
        put = self.partitioner.put_batch
        common: dict[str, Any] = {"put": put, "name": evaluation.name, "every_steps": evaluation.every_steps}
        if evaluation.kind == "loss":
            return LossEvaluator(self.loss_sums, batches, **common, tiny=tiny is not None)
        if self.experiment.model.vocab_size is None:
            raise UserError(
                f"Evaluation {evaluation.name!r} is of the kind {evaluation.kind!r}, which needs a model that reads "
                "and writes text; this one does not. Take it out of EVALUATIONS."
            )
        if evaluation.kind == "reliance":
            return RelianceEvaluator(self.decoder_sums, batches, **common)
        if evaluation.kind != "generation":
            raise UserError(f"Evaluation.kind is {evaluation.kind!r}; expected 'loss', 'generation' or 'reliance'.")
        model: Any = self.model
        generate = make_generate(model, self.partitioner, evaluation.decoding, end_ids=loader.end_ids)
        prompts: Any = watched(functools.partial(loader.eval_batches, for_decoding=True))
        common |= {"vocabulary": loader.vocabulary, "scoring": evaluation.scoring()}
        if evaluation.words and self.experiment.model.encoder is not None:
            sizes = {"count": evaluation.words, "most": _SOFT_TOKENS}
            common["words"] = make_words(model, self.partitioner, loader.vocabulary.word, **sizes)
        if pays(self.partitioner, evaluation.decoding):
            common["stream"] = make_stream(model, self.partitioner, evaluation.decoding, end_ids=loader.end_ids)
        return GenerationEvaluator(generate, prompts, **common)


def remembered(batches: Callable[[], Iterator[Any]], limit: int = 1 << 28) -> Callable[[], Iterator[Any]]:
    """Keeps what `batches()` gives in memory up to `limit` bytes, for evaluations that come back every few steps."""
    kept: list[Any] | None = None

    def again() -> Iterator[Any]:
        nonlocal kept
        if kept is not None:
            yield from kept
            return
        seen, size = [], 0
        for item in batches():
            size += sum(x.nbytes for x in jax.tree.leaves(item[0]))
            if size <= limit:
                seen.append(item)
            yield item
        kept = seen if size <= limit else None

    return again


def packed_example(example: Any, data: LoaderConfig) -> Any:
    """Returns the shapes of a batch as the training data have it: packed, where they are.

    Raises:
        UserError: the batch is to be packed and has no text, or a packed row has no room for a sample.
    """
    from vadapter.data.order import packing
    from vadapter.data.rows.sizes import Layout

    if not data.packing:
        return example
    packing.check_kind(type(example), "the model")
    (rows, slots), media = example.tokens.shape, example.media.shape[1]
    visual = slots - data.lengths["inputs"] - data.lengths["targets"]
    layout = Layout(data.lengths, media, visual // max(media, 1))
    return packing.example(packing.budgets(data.packing, layout, rows), example)


def data_info(experiment: Experiment, tiny: TinyWriter | None = None) -> Mapping[str, Any]:
    """What fixes the order and content of the training data, for the checkpoint. Its tasks are registered by now.

    Args:
        experiment: the settings.
        tiny: writes the rows for the tiny LM too (`Parts.tiny`).
    """
    from vadapter.data import mixture_description
    from vadapter.data.rows import vocabulary as vocabularies

    data = experiment.data
    more: dict[str, Any] = {"packing": dataclasses.asdict(data.packing)} if data.packing else {}
    if tiny is not None:
        more["tiny_text"] = [vocabularies.sha256(tiny.vocabulary.path), tiny.vocabulary.prompt_format]
    return more | {
        "mixture": data.mixture,
        "split": data.split,
        "seed": data.seed,
        "batch_size": data.batch_size,
        "lengths": dict(data.lengths),
        "contents": mixture_description.contents(data.mixture, data.split),
    }

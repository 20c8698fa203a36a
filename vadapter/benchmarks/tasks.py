"""`benchmark_task`: builds splits of a benchmark on their first use and registers them as a seqio task."""

from collections.abc import Sequence

from vadapter.base.errors import UserError
from vadapter.benchmarks import builder, table
from vadapter.benchmarks.source import BenchmarkSource, TrainingPairs
from vadapter.data.rows import few_shot, formats, prompts
from vadapter.data.rows import vocabulary as vocabularies
from vadapter.data.rows.preprocessors import Caption, Question
from vadapter.data.tasks import add_task


def benchmark_task(
    name: str,
    data_dir: str = "benchmark_data",
    manual_dir: str | None = None,
    splits: Sequence[str] = (),
    *,
    prompt: str = "",
    shots: int = 4,
    shots_seed: int = 0,
    shots_fixed: bool = False,
    example_prompt: str = "text_example",
    resize: str | None = None,
    frame_sampling: str = "uniform",
    vocabulary: str = "",
    prompt_format: str = formats.PLAIN,
    max_bad_share: float = 0.01,
) -> str:
    """Registers the seqio task of a benchmark under its name, and returns the name: for .gin files.

    Rows have the official id as `id`, all captions or answers in the order of the official file, and `question_type`,
    `answer_type`, `domain` and `image` where the benchmark has them.

    Args:
        name: of a benchmark, see `table`.
        data_dir: where built splits are; those that are not are written there first.
        manual_dir: folder with the official files and the media, as data/README.md says; not needed once all is built.
        splits: of the benchmark; default the one that papers report.
        prompt: a name in data/prompts or a template; default the benchmark's.
        shots: text-only examples of the training split before a question (its official file must be there too); 0 is
            none. Captions have none.
        shots_seed: seed of the choice of examples.
        shots_fixed: whether all questions have the same examples.
        example_prompt: form of an example: a name in data/prompts, or a template with `<question>` and `<answer>`.
        resize: stretch, crop, pad, or another text of `resizing.parse`; default as the encoder has it.
        frame_sampling: uniform, centre or random; see `video.decode`.
        vocabulary: a tokeniser's file or folder; see `tasks.jsonl_task`.
        prompt_format: `plain`, `chat` or a family; see `tasks.jsonl_task`.
        max_bad_share: share of the rows that may have no file.

    Raises:
        UserError: no such benchmark or split, its files are missing or damaged, a prompt is not a template or has no
            place for the examples.
    """
    official = table.benchmark(name)
    splits = tuple(splits) or (official.evaluated,)
    with_examples = official.question and shots > 0
    if with_examples and "train" not in official.splits:
        raise UserError(
            f"Expected {name} to have a split train, which its {shots} examples before a question are taken from; it "
            f"has {', '.join(official.splits)}. Set shots to 0 (SHOTS=0)."
        )
    prompt = prompt or official.default_prompt(with_examples)
    template = prompts.resolve(prompt, official.question)
    if with_examples and prompts.EXAMPLES not in template:
        raise UserError(
            f"Expected {prompts.EXAMPLES} in the prompt of {name}, the place of its {shots} examples; found "
            f"{template!r}. Add it before {prompts.MEDIA}, or set shots to 0."
        )
    words = vocabularies.load_vocabulary(vocabulary, prompt_format)
    made = {
        split: builder.prepare(data_dir, name, split, manual_dir or "", max_bad_share=max_bad_share) for split in splits
    }
    source = BenchmarkSource(made, official.media, resize, frame_sampling)
    if not official.question:
        return add_task(name, source, [Caption(prompt)], vocabulary=words)
    examples = None
    if with_examples:
        pairs = TrainingPairs(builder.prepare(data_dir, name, "train", manual_dir or "", text_only=True))
        examples = few_shot.Examples(pairs, shots, shots_seed, shots_fixed, example_prompt)
    return add_task(name, source, [Question(prompt, examples)], vocabulary=words)

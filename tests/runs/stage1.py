"""A trained stage 1 with a tokeniser of its own, and the random backbones of a stage 2 beside it."""

import vadapter
from tests.data.tokenizer_files import write_tokenizer
from tests.models import small
from tests.saved import save_params
from tests.training import small as training
from vadapter.base import trees
from vadapter.models.vlm import VLM


def write(root, model, stage1, data, lengths):
    """Writes `encoder`, `decoder` (of the model), `tiny` (the LM of stage 1) and `stage1`, two steps on `data`."""
    for of, part, name in ((model, "encoder", "encoder"), (model, "decoder", "decoder"), (stage1, "decoder", "tiny")):
        params = trees.flatten(training.params(VLM(of), example=small.batch(of, rows=1)))
        save_params(str(root / name), trees.unflatten({p: x for p, x in params.items() if p.startswith(part)}))
    write_tokenizer(root / "tiny" / "tokenizer", "qwen")
    vadapter.train(
        stage1,
        root / data,
        root / "stage1",
        weights={"encoder": root / "encoder", "decoder": root / "tiny"},
        trainable=("adapter/.*", "decoder/.*"),
        vocabulary=str(root / "tiny"),
        steps=2,
        batch_size=8,
        lengths=lengths,
    )

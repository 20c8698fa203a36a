"""The small vocabulary of the scenes world, a SentencePiece model.

512 pieces: pad 0, eos 1, unk 2, bos 3, 256 bytes, the words of scenes and prompts, the printable ASCII characters and
common English words. Any other text falls back to bytes, so that every text can be written. As in Gemma's vocabulary,
no space is put before a text and none is dropped: " red" is one piece, and decoding gives back what was encoded.

    python -m vadapter.data.scenes.build_vocabulary data/scenes/vocabulary.model
"""

import collections
import math
import random
import re
import string
import sys
from pathlib import Path

from vadapter.data.rows import prompts
from vadapter.data.scenes import text, world

SIZE = 512
_SPACE = "\u2581"  # how SentencePiece writes a space
# To fill up to SIZE: frequent words of English and of captions, most useful first.
_ENGLISH = (
    "the of and to in is on with it for man woman one person people two white black sitting standing street table "
    "holding large small field next top front group near young train dog cat room water plate tennis red blue green "
    "baseball riding down bathroom over sign grass kitchen food by snow building bus this that from at as are was "
    "or an be his her their not but what who which how where why when yes no photo picture image brown horse beach "
    "boy girl ball parked bed car city clock playing air looking board "
)


def _corpus() -> list[str]:
    config_texts = text.documents(random.Random("vocabulary"), 4000, max_objects=2, paraphrases=4)
    scenes = [world.sample_clip(random.Random(i), 2) for i in range(500)]
    more = [" " + c for s in scenes for c in world.captions(s)]
    templates = [prompts.load(n) for n in ("caption", "image_question", "video_question")] + [text.LIST_PROMPT]
    more += [part.replace(prompts.QUESTION, "") for t in templates for part in prompts.split(t)] * 5
    return config_texts + more + [" " + w for w in world.KINDS + world.COLOURS + world.SIZES]


def _pieces(corpus: list[str]) -> list[tuple[str, float]]:
    """Returns (piece, log probability): words by their frequency, then fillers, then single characters."""
    counts = collections.Counter(
        w.replace(" ", _SPACE) for line in corpus for w in re.findall(r" ?[^\s\w]| ?\w+", line)
    )
    total = sum(counts.values())
    found = {w: math.log(n / total) for w, n in sorted(counts.items(), key=lambda x: (-x[1], x[0]))}
    characters = [c for c in [_SPACE, *string.printable[:95]] if c != " " and c not in found]
    room = SIZE - 4 - 256 - len(found) - len(characters)
    fillers = [w for w in dict.fromkeys(_SPACE + w for w in _ENGLISH.split()) if w not in found][:room]
    if len(fillers) < room or room < 0:
        raise ValueError(f"the vocabulary needs {room} filler words and has {len(fillers)}")
    rare = min(found.values()) - 1
    return [*found.items(), *((w, rare) for w in fillers), *((c, rare - 5) for c in characters)]


def build() -> bytes:
    """Returns the serialised SentencePiece model. The same bytes at each call."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    model, kind = pb.ModelProto(), pb.ModelProto.SentencePiece.Type
    for piece, type_ in (
        ("<pad>", kind.CONTROL),
        ("</s>", kind.CONTROL),
        ("<unk>", kind.UNKNOWN),
        ("<s>", kind.CONTROL),
    ):
        model.pieces.add(piece=piece, score=0.0, type=type_)
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=kind.BYTE)
    for piece, score in _pieces(_corpus()):
        model.pieces.add(piece=piece, score=round(score, 4), type=kind.NORMAL)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = pb.TrainerSpec.ModelType.UNIGRAM
    trainer.vocab_size, trainer.byte_fallback = len(model.pieces), True
    trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = 0, 1, 2, 3
    trainer.pad_piece, trainer.eos_piece, trainer.unk_piece, trainer.bos_piece = "<pad>", "</s>", "<unk>", "<s>"
    normalizer.name, normalizer.precompiled_charsmap = "identity", b""
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return model.SerializeToString(deterministic=True)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(build())

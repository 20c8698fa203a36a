"""How vocabularies are opened. `text_vocabulary` says what they are, `token_libraries` has the two kinds."""

import hashlib

from vadapter.base import local_files
from vadapter.base.errors import UserError
from vadapter.data.rows import formats
from vadapter.data.rows.text_vocabulary import SCENES, TextVocabulary, locate
from vadapter.data.rows.token_libraries import SentencePieceVocabulary, TokenizerVocabulary


def load_vocabulary(path: str, prompt_format: str = formats.PLAIN) -> TextVocabulary:
    """Opens a vocabulary.

    Args:
        path: see `locate`.
        prompt_format: `plain`, `chat` or a family; see `formats.choose`.

    Raises:
        UserError: there is none, it cannot be read, or it does not have the format's tokens.
    """
    path = "" if path == SCENES else path  # what records call it
    return (TokenizerVocabulary if locate(path).suffix == ".json" else SentencePieceVocabulary)(path, prompt_format)


def load_given(path: str, prompt_format: str, setting: str) -> TextVocabulary:
    """`load_vocabulary` for a task of real data, whose vocabulary must be named.

    Args:
        path: see `locate`, but not empty: the shipped vocabulary is a toy, and must not be taken by oversight.
        prompt_format: `plain`, `chat` or a family.
        setting: that the path comes from, for the message.

    Raises:
        UserError: the path is empty, or as `load_vocabulary`.
    """
    if not path:
        raise UserError(
            f"Expected a vocabulary in {setting}; found none. Give the tokenizer of the language model: its file or "
            f"folder, or the folder that vadapter import wrote (VOCABULARY). {SCENES!r} is the 512-piece vocabulary "
            "of the demo's models."
        )
    return load_vocabulary(path, prompt_format)


def sha256(path: str) -> str:
    """Returns the hash of the file that defines a vocabulary."""
    return hashlib.sha256(local_files.content_of(locate(path))).hexdigest()

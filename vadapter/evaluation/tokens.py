"""The words of captions, as the COCO evaluation counts them: by its Java program, or by the same rules in Python."""

import functools
import logging
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vadapter.evaluation.ptb import PUNCTUATION, ptb_tokenize

PTB_JAVA = "ptb-java"
PYTHON = "python"
_SURROGATE = re.compile("[\ud800-\udfff]")


@functools.cache
def java_version() -> str:
    """What `java -version` says first; empty where Java is absent or does not run."""
    if not shutil.which("java"):
        return ""
    run = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    lines = [line for line in (run.stderr + run.stdout).splitlines() if "version" in line]
    return lines[0].strip() if run.returncode == 0 and lines else ""


def tokenize(captions: Sequence[str], tokenizer: str) -> list[str]:
    """The tokens of captions as the COCO evaluation counts them, joined by spaces.

    Args:
        captions: texts; a line break in one is a space, half a surrogate pair is U+FFFD.
        tokenizer: `ptb-java` starts Java once; `python` starts no program.

    Raises:
        RuntimeError: Java failed.
    """
    lines = [_SURROGATE.sub("\ufffd", " ".join(caption.splitlines())) for caption in captions]
    return _java_tokens(lines) if tokenizer == PTB_JAVA else ptb_tokenize(lines)


def _java_tokens(lines: list[str]) -> list[str]:
    """Runs pycocoevalcap's tokenizer. Not through its class: that writes into site-packages and trusts the locale."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    if not any(line.strip() for line in lines):
        return [""] * len(lines)
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    run = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"], input="\n".join(lines).encode(), capture_output=True, check=False
    )
    # Lines end in \n alone; the program drops empty lines at the end.
    found = run.stdout.decode().split("\n")
    if run.returncode or len(found) > len(lines) + 1:
        raise RuntimeError(f"the PTB tokenizer failed on {len(lines)} captions: {run.stderr.decode()[-500:]}")
    found += [""] * (len(lines) - len(found))
    return [" ".join(t for t in line.rstrip().split(" ") if t not in PUNCTUATION) for line in found[: len(lines)]]


def caption_tokens(caption: str) -> list[str]:
    """The words of a caption: lower case, clitics split off (`man 's`), punctuation dropped. Starts no program."""
    return tokenize([caption], PYTHON)[0].split()


def best_tokenizer() -> str:
    """`ptb-java` where Java runs, else `python`, which is said once."""
    if java_version():
        return PTB_JAVA
    say_once(
        "Java is not on PATH (install a runtime of version 8 or later): captions are scored on vadapter's Python "
        "tokenizer, which agrees with the official one, and METEOR and SPICE are left out."
    )
    return PYTHON


@functools.cache
def say_once(message: str) -> None:
    """Logs a warning, the first time that it is given."""
    logging.warning(message)

"""The Python tokenizer against the Java one, live where there is Java and against its recorded tokens everywhere."""

import json
import shutil
from pathlib import Path

import pytest

from tests.evaluation.awkward_captions import awkward_captions
from vadapter.evaluation.ptb import ptb_tokenize
from vadapter.evaluation.tokens import PTB_JAVA, tokenize

# {"captions": [...], "tokens": [...]}: what the Java program made of these captions, read together. Written by
# `python -m tests.evaluation.test_ptb_tokenizer`.
GOLDEN = Path(__file__).with_name("ptb_golden.json")
HAND = """
    don't can't won't cannot gonna y'all 'tis O'Brien o'clock d'Artagnan l'eau Hawai'i ma'am goin' ol' rock'n'roll
    '80s it’s Mr. Dr. St. etc. U.S. p.m. a.m. Ph.D. J.R.R. no. in. lb. approx. 1,000 3.5 .5 1/2 ½ $5 €5 £4 50%
    10:30 1,000-foot 5'10" (a) [b] {c} <d> "e" 'f' “g” ‘h’ a-b a--b a–b a—b and/or a/b/c/d w/ ... …… ?! !!! :) :-(
    ;) ^_^ <3 #tag @user & AT&T M&M's http://a.com/b. www.a.com a.com me@x.org. &amp; &lt;b&gt; caf&eacute; café
    naïve 😀 ❤️ a😀b foo_bar foo.jpg C++ C# € ™ ° ² word., word.; a. The b. he
"""


def differing(texts, expected):
    found = ptb_tokenize(texts)
    return [(t, e, f) for t, e, f in zip(texts, expected, found, strict=True) if e != f]


def test_agrees_with_the_recorded_java_tokens():
    golden = json.loads(GOLDEN.read_text())
    assert len(golden["captions"]) >= 400
    assert differing(golden["captions"], golden["tokens"]) == []


@pytest.mark.skipif(not shutil.which("java"), reason="java is not on PATH")
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_java_on_thousands_of_awkward_captions(seed):
    texts = awkward_captions(4000, seed)
    assert differing(texts, tokenize(texts, PTB_JAVA)) == []


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's dog doesn't run; it can't.", "a man 's dog does n't run it ca n't"),
        ("a man (left) [sic]", "a man -lrb- left -rrb- -lsb- sic -rsb-"),
        ("at 5 p.m. in the U.S.", "at 5 p.m. in the u.s."),
        ("a 2 1/2 foot dog", "a 2\u00a01/2 foot dog"),
        ("a dog 😀 and a cat ❤", "a dog and a cat ❤"),
        ("", ""),
        (" ?!? ... ", "?!?"),
    ],
)
def test_tokens(caption, tokens):
    assert ptb_tokenize([caption]) == [tokens]


def test_the_next_caption_may_end_a_sentence():
    assert ptb_tokenize(["plan b.", "The dog"]) == ["plan b", "the dog"]
    assert ptb_tokenize(["plan b.", "Dogs"]) == ["plan b.", "dogs"]


def write_golden():
    """Records the Java program's tokens."""
    texts = [f"the {word} there" for word in HAND.split()] + awkward_captions(420, 99)
    GOLDEN.write_text(json.dumps({"captions": texts, "tokens": tokenize(texts, PTB_JAVA)}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write_golden()

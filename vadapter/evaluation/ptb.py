"""The tokens of a caption, as the COCO caption evaluation counts them, without Java.

The official scores are of tokens that Stanford's Java tokenizer (Penn Treebank style, version 3.4.1, with
`-preserveLines -lowerCase`) makes. `ptb_tokenize` is written from the outside: its rules are what that program was seen
to do with some millions of probes, and tests compare the two on thousands of awkward captions. It reads as that program
does: at each place the rule that matches most wins, what a rule looks ahead at counted.

Known differences are in scripts other than Latin, Greek and Cyrillic and in characters that are newer than the Java
program's tables.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

# Tokens that the evaluation drops. It lists brackets as -LRB- and so on; tokens are lower case by then, so that
# brackets stay, as -lrb- and so on, in every published figure.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_SYMBOLS = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "\u2018": "`", "\u201b": "`", "\u2039": "`", "\u2019": "'", "\u203a": "'", "\u201c": "``", "\u00ab": "``",
    "\u201d": "''", "\u00bb": "''", '"': "''", "\u2013": "--", "\u2014": "--", "\u2015": "--", "\u2026": "...",
    "\u00a4": "$", "\u20a0": "$", "\u20ac": "$", "\u00a2": "cents", "\u00a3": "#", "\u00bc": "1/4", "\u00bd": "1/2",
    "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3",
    "\u058a": "", "\u2010": "", "\u2011": "",
    # The control codes that a text in Windows' encoding turns into when it is read as Latin-1.
    "\u0080": "$", "\u0091": "`", "\u0092": "'", "\u0093": "``", "\u0094": "''", "\u0096": "--", "\u0097": "--",
}  # fmt: skip
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": "''", "apos": "'", "nbsp": "", "mdash": "--", "ndash": "--"}

# Marks that the Java program knows; any other that is no letter, digit or mark of these is dropped, emoji among them.
_KNOWN = (
    r"!?@#+\-/.,:'_\u2044"
    r"$-&*;-><\\^`|~\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b1\u00b2-\u00b4\u00b6-\u00b9\u00bf\u00d7\u00f7\u037e\u0387\u0589"
    r"\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2070\u2074-\u207e\u2080-\u208e\u20a4\u2100\u2101"
    r"\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e\u213a\u213b\u2140-\u2144"
    r"\u214a-\u214d\u214f\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40"
    r"\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)

_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty aug ave bancorp bhd bldg blvd brig bros calif capt cf cie cmdr
    co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov
    govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme
    mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc ppte ppty pres prof profs pte ptes pty
    ptys pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu thurs treas
    tue tues univ va vs vt wed wis wisc wm wyo
"""
_CAPITAL_ABBREVIATIONS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"  # lower case they are words: "miss."
_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"
# After a capital letter and a period these begin a sentence: "plan B. The ...".
_SENTENCE_STARTS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once One
    Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You
"""
_WHOLE = """
    e'er ne'er o'er nat'l cap'n li'l c'mon c'est s'mores nor'easter o'o 'cause dunkin' 'til 'till 'em 'n'
"""
_SPLIT = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3}


def _any_of(words: str) -> str:
    return "|".join(re.escape(word) for word in sorted(words.split(), key=len, reverse=True))


def _ranges(codes: list[int]) -> str:
    """The inside of a character class with these codes."""
    text, start = "", None
    for code, following in zip(codes, codes[1:] + [-1], strict=True):
        start = code if start is None else start
        if following != code + 1:
            text += f"\\u{start:04x}-\\u{code:04x}"
            start = None
    return text


# Letters, and the accents that are characters of their own.
L = "a-zA-Z" + _ranges(
    [c for c in range(0xAA, 0x10000) if unicodedata.category(chr(c))[0] == "L"]
    + [
        0xAD,
        *range(0x2C2, 0x2C6),
        *range(0x2D2, 0x2E0),
        *range(0x2E5, 0x2EC),
        *range(0x2EF, 0x370),
        *range(0x483, 0x488),
    ]
)
A = f"{L}\\d"
APO, APO_ = "['\u2019]", "['\u2019\u2018`]"
HYPHEN = "[-_\u058a\u2010\u2011]"
SEGMENT = f"(?:[dlo]{APO}[{L}]{{2,}}|(?:(?!\u00ad)[{A}])+)"
THING = f"{SEGMENT}(?:{HYPHEN}{SEGMENT})*"
COMPOUND = r"[a-z\d\u00ad][a-z\d\u00ad.,]*(?:-(?:[a-z](?:\.[a-z])+\.|[a-z\d\u00ad]+))+"
_FILES = """
    c h x gz pl ps py bat bmp cgi cpp dll doc docx exe gif htm html jar java jpg jpeg mov mp3 pdf php png ppt sql tar
    txt wav xml zip class
"""
DOTTED = rf"(?:[{L}][{A}]*(?:[.!?][{L}][{A}]*)+|[{A}]+\.(?:{_any_of(_FILES)})(?=[\s.,!?]|$))"
NUMBER = r"[+-]?(?:\d*(?:[.:,\u2044\u066b\u066c]\d+)+|\d+)"

_UNKNOWN = re.compile(f"[^{A}{_KNOWN}{re.escape(''.join(_SYMBOLS))}]")
_PLAIN = re.compile(r"[a-zA-Z]+(?= )")
_SPACE = re.compile(r"[ \t]+")


# What stands in an address: a no-break space does, so that `\\s` is not what to leave out.
_URL = r'[^ \t\n"<>|()]'
_URL_END = r'[^ \t\n"<>|(){}.!?,-]'
_URL_LABEL = r'[^ \t\n"<>|(){}.!?,]'
_HOST = r"""[^A-Z \t\n"$'(),\-./\d:;<=>?@\[\\\]^_`{|}!]"""
_MAIL, _MAIL_END = r'[^\s"<>|(){}@]', r'[^\s"<>|(){}.]'
_ACCENT = "&[aeiou](?:acute|grave|uml);"


class _Rule(NamedTuple):
    """A pattern and what becomes of its match: of its group if that matched, where the rest is only looked ahead at."""

    pattern: re.Pattern[str]
    token: Callable[[str], str] = str


def _word(text: str) -> str:
    return text.replace("\u00ad", "")


def _rule(pattern: str, token: Callable[[str], str] = _word, flags: int = re.IGNORECASE) -> _Rule:
    return _Rule(re.compile(pattern, flags), token)


def _ampersand(text: str) -> str:
    return re.sub("&amp;", "&", text, flags=re.IGNORECASE)


def _split(word: str) -> str:
    at = _SPLIT[word.lower().replace("\u2019", "'")]
    return f"{word[:at]} {word[at:]}"


def _entity(text: str) -> str:
    name = text[1:-1]
    return text if name.lower() in ("apos", "quot") and name != name.lower() else _ENTITIES[name.lower()]


def _quotes(text: str) -> str:
    return "".join(_SYMBOLS.get(c, c) for c in text)


def _nbsp(text: str) -> str:
    """A space within a token is a no-break space; parentheses have their names."""
    return re.sub(r"\s", "\u00a0", text).replace("(", "-lrb-").replace(")", "-rrb-")


_RULES = [
    # words
    _rule(f"(?:{_any_of(' '.join(_SPLIT))})(?![{A}])".replace("'", APO), _split),
    _rule(rf"('t)(?:is|was)(?![{L}])"),
    _rule(THING),
    _rule(f"[{A}]+"),
    _rule(f"n{APO}(?!(?:ll|re|ve)(?![{L}]))[{L}]{{2,}}"),
    _rule(COMPOUND),
    _rule(rf"((?:{THING}|[{A}]+|{COMPOUND}|{DOTTED})\.)[,;:]"),
    _rule(r"([A-Z]+(?:&(?:(?i:amp);)?[A-Z]+)+\.)[,;:]", _ampersand, flags=0),
    _rule(rf"([{L}]*(?!n)[{L}])n{APO_}t"),
    _rule(f"n{APO_}t(?![{L}])", _quotes),
    _rule(f"([{A}]+){APO}(?:ll|re|ve|[sdm])(?![{L}])"),
    _rule(f"{APO}(?:ll|re|ve|[sdm])(?![{L}])", _quotes),
    _rule("[`\u201a\u201e\u2018\u2019\u201c\u201d\u00ab\u00bb\u2039\u203a\u201b\u0091-\u0094]{1,2}", _quotes),
    _rule("[\u00b2\u00b3\u00b9\u2070\u2074-\u207e]+|[\u2080-\u208e]+"),
    _rule(f"[djl]{APO}|(y{APO})(?!(?:ll|re|ve|[sdm]))[{L}]"),
    _rule(f"[{L}]+[aeiouyAEIOUY]{APO}[aeiouA-Z][{L}]*|[A-XZ]{APO}[{L}]{{2,}}", flags=0),
    _rule(_any_of(_WHOLE).replace("'", APO) + f"|ol{APO}(?![{L}])"),
    _rule(rf"({APO}n)(?:\s|$)"),
    _rule(rf"{APO}(?:\d0s|\d\d(?=\s|$))"),
    # abbreviations and names with periods
    _rule(r"[a-z](?:\.[a-z])+\.(?:-[a-z\d]+)*|ph\.d\."),
    _rule(rf"([a-zA-Z]\.)(?!\s+(?:{_any_of(_SENTENCE_STARTS)})(?:\s|$))", flags=0),
    _rule(rf"(?:{_any_of(_ABBREVIATIONS)})\."),
    _rule(rf"(?:{_any_of(_CAPITAL_ABBREVIATIONS)})\.", flags=0),
    _rule(rf"(?:{_any_of(_CAPITAL_ABBREVIATIONS.upper())})\.", flags=0),
    _rule(rf"((?:{_any_of(_BEFORE_NUMBERS)})\.)\s?\d"),
    _rule(DOTTED),
    _rule(r"[A-Z]+(?:&(?:(?i:amp);)?[A-Z]+)+", _ampersand, flags=0),
    _rule(r"c\+\+|[cf]#"),
    # numbers
    _rule(NUMBER),
    _rule(r"(?:\d{1,4}[- \u00a0])?\d{1,4}/\d{1,4}", _nbsp),
    _rule(r"[a-z\d]+(?:-[a-z][a-z\d]*)*(?:/[a-z\d]+(?:-[a-z][a-z\d]*)*){1,2}"),
    _rule(r"(?:\+\d{2,3}[- .])?(?:\(\d{3}\)[ ]?|\d{2,4}[- .])\d{3,4}[- .]\d{3,5}", _nbsp),
    _rule(r"[A-Z]+\$", flags=0),
    # addresses, tags
    _rule(rf"https?://{_URL}+\.{_URL}*{_URL_END}"),
    _rule(rf"www\.(?:{_URL_LABEL}+\.)+[a-z]{{2,4}}/{_URL}+{_URL_END}"),
    _rule(rf"(?:{_HOST}+\.)+(?:(?i:com|net|org|edu))(?:/{_URL}+{_URL_END})?", str, flags=0),
    _rule(r"[a-z\d]" + _MAIL + rf"*@{_MAIL_END}+(?:\.{_MAIL_END}+)*", str),
    _rule(f"#(?:[{L}]|{_ACCENT})+", str),
    _rule(r"@[a-z_][a-z_0-9]*"),
    _rule(r"<[!/?]?(?!https?:)[a-z][^<>'\n]*>|<!--.*?>", _nbsp),
    _rule(f"&(?:{'|'.join(_ENTITIES)});", _entity),
    _rule(r"&#\d+;"),
    _rule(f"[{A}]*(?:{_ACCENT}[{A}]*)+"),
    # marks
    _rule(rf"[<>]?[:;=][-o*']?[()\[\]{{@\\|](?![{A}])", _nbsp),
    _rule(rf"(?:[:;=][-o']?[DPdp]|[:;][-o']?O|=[-o']O)(?![{A}])", flags=0),
    _rule("[<>=^~'-]_[<>=^~'-]"),
    _rule(r"\([<>=^~'x-][_.]?[<>=^~'x-]\)", _nbsp, flags=0),
    _rule(r"[!?]+|\*+|#+|@+|_+|<<|>>|''|``|\\\*"),
    _rule(r"-{2,4}(?!-)", lambda _: "--"),
    _rule("-{5,}"),
    _rule(r"\.{3,5}|\.(?: \.){2,}", lambda _: "..."),
]


def _next_token(text: str, at: int) -> tuple[str, int]:
    """The token that begins at `at`, and where it ends."""
    best, length, end, found = None, 0, at, ""
    for rule in _RULES:
        match = rule.pattern.match(text, at)
        if match and match.end() - at > length:
            best, length = rule, match.end() - at
            group = 1 if rule.pattern.groups and match.group(1) is not None else 0
            end, found = match.end(group), match.group(group)
    if best is None:
        mark = text[at]
        return "" if _UNKNOWN.match(mark) else _SYMBOLS.get(mark, mark), at + 1
    return best.token(found), end


def _tokens(caption: str, following: str) -> Iterator[str]:
    text, at = caption + following, 0
    while at < len(caption):
        if space := _SPACE.match(text, at):
            at = space.end()
        elif (plain := _PLAIN.match(text, at)) and plain.group().lower() not in _SPLIT:
            at = plain.end()
            yield plain.group()
        else:
            token, at = _next_token(text, at)
            yield from token.split(" ")


def ptb_tokenize(captions: Sequence[str]) -> list[str]:
    """Tokenizes captions as the COCO caption evaluation does.

    Captions come together because the Java program reads one after the other and looks ahead: `plan B.` loses its
    period where the next caption begins with `The`, as before a new sentence.

    Args:
        captions: texts of one line each.

    Returns:
        For each caption its tokens, lower case, without punctuation, joined by spaces. A token with a space in it
        (`2 1/2`) has a no-break space.
    """
    lines, following = [], ""
    for caption in reversed(captions):
        tokens = [token.lower() for token in _tokens(caption, following)]
        lines.append(" ".join(t for t in tokens if t and t not in PUNCTUATION))
        following = "\n" + (caption if caption.strip() else caption + following)[:64]
    return lines[::-1]

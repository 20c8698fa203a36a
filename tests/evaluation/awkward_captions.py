"""Captions with awkward punctuation, by the thousand, for comparing tokenizers."""

import random

_WORDS = """
    a the two man woman dog cat red black bus street table pizza riding holding sitting grey colourful on with near of
    and skateboard surfboard giraffes children fire hydrant Smith New York Amsterdam café naïve jalapeño piñata Zürich
    crème brûlée façade über smörgåsbord"""
_AWKWARD = [
    # clitics and apostrophes
    """don't can't won't isn't ain't shan't couldn't doesn't they'd've man's dogs' James' he's it's I'm I'd
    we've they're you'll she'd let's who's that'll y'all Y'all ya'll ma'am o'clock O'CLOCK 'tis 'Tis 'twas
    'em 'til 'cause rock'n'roll goin' ridin' ol' li'l cannot Cannot CANNOT gonna gotta wanna gimme lemme
    more'n O'Brien O'Neill D'Angelo d'Orsay L'Oreal l'eau c'mon s'mores nor'easter Hallowe'en Hawai'i po'boy
    jack-o'-lantern Domino's McDonald's Wendy's Dunkin' Levi's M&M's 80's 1980's '80s 90s '70s-style dont
    cant 's n't don’t man’s it’s y’all ’em o’clock O’Brien dogs’ cap'n needn't've e'er fo'c'sle rock-n-roll
    Toys'R'Us Qur'an g'day""",
    # abbreviations
    """Mr. Mrs. Ms. Dr. Prof. St. Ave. Rd. Blvd. Jr. Sr. Inc. Co. Corp. Ltd. vs. etc. e.g. i.e. a.m. p.m. A.M.
    P.M. U.S. U.K. U.S.A. D.C. N.Y. N.Y.C. L.A. Ph.D. M.D. B.A. J. J.R.R. E.T. R.I.P. a.k.a. No. no. nos.
    fig. Fig. pp. p. ft. in. lb. lbs. oz. cm. km. sq. approx. Jan. Feb. Sept. Dec. Mon. Tues. Fri. Gen. Lt.
    Sgt. Capt. Gov. Sen. Rev. Pres. Mt. Ft. Calif. Penn. Mass. Wash. Ill. ill. Miss. miss. U.S.-based U.S.'s
    Mr Dr am pm a.m p.m. St.Louis Mr.Smith No.5 w/ w/o b/w U.S U.N. cf. al. et""",
    # numbers
    """1 2 10 100 1,000 1,000,000 3.5 .5 0.75 1/2 3/4 2-1/2 ½ 1½ ¼ ¾ ⅓ ⅔ 1st 2nd 3rd 42nd 50% 50 % 100.5% $5
    $5.99 $1,000 US$5 €5 £4 ¥500 5€ 99¢ 10:30 10:30am 7:45 16:9 24/7 9/11 12/25/2012 2012-12-25 1990s
    1,000-foot 3-foot 5-year-old 20-somethings mid-20s 4x4 4×4 2x 10K 4k 1080p 3D 3-D 5'10" 6' 12" 5ft 6ft.
    5lb 30mph 40km/h 5°C 70° 20º -5 +1 1-2 1–2 10-12 50-50 #1 #23 No.1 555-1234 555-123-4567 (555)123-4567
    1-800-555-1234 1.2.3 v2.0 1+1=2 2*3 3:00p.m. 7.a.m. 1,00 5,6 1: 5. 5, 1.5-mile 1/2-inch 5/day 747 747s
    A380 F-16 B-52 AK-47 7-Eleven 7up MP3 H2O""",
    # hyphens, slashes, dashes
    """black-and-white T-shirt t-shirts x-ray e-mail semi- -like man-made off-white up-close co-op's well­known
    a‐b a‑b and/or he/she red/white/blue a/b/c/d/e men's/women's on/off- km/h - -- --- ---- ------ – — ―
    a--b dog–cat dog—cat word- -word a-b-c foo_bar _foo_ __ foo__bar snake_case-name and / or red/ white
    /blue""",
    # quotes and brackets
    """" ' '' `` ` "" ''' “ ” ‘ ’ „ « » ‹ › ″ ′ ( ) [ ] { } < > (( )) () [] {} << >> <b> <br/> <br> </p> <unk>
    <person> "Stop" 'Stop' ``Stop'' `Stop' “Stop” ‘Stop’ «Stop» “Stop,” "Stop." 'Stop!' (left) [sic] {x} (a)
    (1) 1) a) "a"b ('quoted') ("quoted") [“quoted”]""",
    # marks
    """. .. ... .... ..... … …… ?! !? !!! ??? ! ? , ,, ; : :: ;; .) ." .' !" ?) !.. ...? & @ # * ** *** ~ ^ |
    || \\ // + ++ = == % $ $$ € £ © ® ™ ° º ² ³ m² × ÷ ± → ← ★ ♥ ♪ • · § ¶ ¡ ¿ µ ∞ √ ≤ _ ***** ~~ ----> <-
    => ^^ ¢ ¤ ₹""",
    # tags, addresses, symbols within words
    """@user @some_user #tag #some_tag #TBT #a1 http://www.example.com https://example.com/a/b.html?c=d#e
    www.example.com example.com example.com/page Amazon.com node.js foo.jpg IMG_1234.JPG me@example.org
    first.last@mail.co.uk AT&T R&B Q&A H&M B&B S&P500 A&W salt&pepper Q & A C++ C# E*TRADE Yahoo! Toys"R"Us
    P!nk Ke$ha end.Start end,start end;start end:start end...start end?Start wow!so .net ASP.NET
    www.flickr.com/photos/1234""",
    # entities, emoji, smileys, spaces
    """&amp; &quot; &lt; &gt; &apos; &nbsp; &#39; &eacute; &copy; AT&amp;T salt&amp;pepper caf&eacute; 😀 😂😂 ❤
    ❤️ 👍🏽 🐶dog cat🐱 ☺ ☕ 🇺🇸 :) :-) :( ;) :D :P =) :/ <3 xD :'( ^_^ -_- >_< (: :)) :] :| 8-) a\u00a0b \u00a0
    \u200b a\u200bb \u2009 \ufeff \ufffd""",
    # long words and repeated letters
    """supercalifragilisticexpialidocious Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch
    aaaaaaaaaaaaaaaaaaaaaaaaaaaaa sooooooooo hahahahahahahahaha !!!!!!!!!!!!!!!!!!!!
    ........................ -------------------- 12345678901234567890 ???????
    antidisestablishmentarianism-antidisestablishmentarianism-antidisestablishmentarianism""",
]  # fmt: skip
_BEFORE = ["", "", "", "", "", '"', "'", "“", "‘", "(", "[", "-", "--", "—", "...", "#", "$", "*", "¿"]
_AFTER = [
    "", "", "", "", "", "", ",", ".", "!", "?", ";", ":", '"', "'", "”", "’", ")", "]", ".)", '."', ",”", "...", "…",
    "--", "—", "-", "'s", "’s", "%", "/", "!!", "?!", "*",
]  # fmt: skip
_JOINTS = [" "] * 12 + ["  ", "-", "/", " - ", "--", " — ", "—", ", ", "; ", " & ", "&", "...", ". ", ": ", "\u00a0"]
_CASES = [str] * 8 + [str.lower, str.upper, str.title, str.capitalize]


def awkward_captions(count: int, seed: int) -> list[str]:
    """Makes captions of 2 to 9 words, of which some are awkward, joined and enclosed in awkward ways."""
    rng = random.Random(seed)
    words = _WORDS.split()
    pools = [pool.replace("\n", " ").split(" ") for pool in _AWKWARD]  # no-break spaces stay
    pools = [[word for word in pool if word] for pool in pools]

    def word() -> str:
        if rng.random() < 0.55:
            return rng.choice(words)
        return rng.choice(_BEFORE) + rng.choice(rng.choice(pools)) + rng.choice(_AFTER)

    def caption() -> str:
        text = word()
        for _ in range(rng.randint(1, 8)):
            text += rng.choice(_JOINTS) + word()
        text += rng.choice(["", "", ".", ".", " .", "!", "...", '."', "?"])
        return rng.choice(_CASES)(text)

    return [caption() for _ in range(count)]

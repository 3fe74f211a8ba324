"""Reading: what is typed -> a prompt that a small model was trained on.

A small model knows some hundred prompts and nothing else; to it any other word is noise. Its text
encoder's file lists the prompts, and other phrases for them: synonyms, emoji, names in Chinese and
Japanese. The first thing in a text that the model knows is drawn, and the rest is left out and
said. Files of large models list nothing, and their texts are not read.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..errors import UnknownPromptError, quote

# phrase -> its prompt; of a phrase that is new to the model, three prompts near in meaning
Known = Mapping[str, tuple[str, ...]]

HAN = r"[々ぁ-ゖァ-ヺー㐀-鿿]"  # and kana: no spaces part these words, so each letter is a unit
WORD = rf"(?:(?!{HAN})[^\W_])+"
TINT = "\ufe0e\ufe0f\U0001f3fb-\U0001f3ff"  # after an emoji: in colour or not, a tone of skin
EMOJI = rf"[🇦-🇿]{{2}}|[⌀-⏿■-➿⬀-⯿\U0001f000-\U0001faff][{TINT}]*"
MARKS = ",;:!?、。/&+\n"
UNIT = re.compile(rf"{EMOJI}|{HAN}|{WORD}(?:['’]{WORD})?|[{MARKS}]|(?<=\w\w)\.(?=\s|$)")
UNWRITTEN = re.compile(f"[\u0300-\u036f'’{TINT}]")  # accents, apostrophes
KATAKANA = {hiragana: hiragana + 0x60 for hiragana in range(ord("ぁ"), ord("ゖ") + 1)}

UNREAD = {"a", "an", "the", ""}  # "" is a tone of skin alone
JOINING = {"of", "的", "上", "ノ"}  # the thing comes after these: of a bowl of rice, rice
# What names no thing: it parts the things of a text, and is not said to be left out.
EMPTY_WORDS = (
    "and or with without in on at by for from to into under over near behind between i me my you "
    "your he she her his it its they their we us our this that these those some is are be there "
    "please draw paint make turn show create generate picture image drawing emoji icon"
)
EMPTY_LETTERS = (
    "在了里裡和与與跟有是这這一个個只隻张張条條匹朵辆輛座颗顆棵请請画畫ニトデガヲハモヘヤナ絵"
)
EMPTY = {*JOINING, *MARKS, ".", *EMPTY_WORDS.split(), *EMPTY_LETTERS}
LISTED = 200  # characters of the words that a sentence lists


class Span(NamedTuple):
    """A part of a text, the phrase that it is, and what ``Known`` has for that, () for nothing."""

    start: int
    end: int
    phrase: str
    prompts: tuple[str, ...]

    @property
    def known(self) -> bool:
        return len(self.prompts) == 1


def known_phrases(prompts: Sequence[str], phrases: Mapping[str, str]) -> Known:
    """The phrases of a model that knows ``prompts``.

    phrases: a prompt -> other phrases for it; three prompts -> phrases that are new, and near to
    them in meaning (the empty phrase is near to any text). All are joined by ``|``.
    """
    known = {key(prompt): (prompt,) for prompt in prompts}
    for meant, others in phrases.items():
        for phrase in others.split("|"):
            known.setdefault(key(phrase), tuple(meant.split("|")))
    known.setdefault("", tuple(prompts[:3]))
    for phrase in list(known):
        for singular in singulars(phrase):
            known.setdefault(singular, known[phrase])
    return known


def read(text: str, known: Known) -> tuple[str, str | None]:
    """The prompt that a text is drawn as, and a sentence, None if the text is that prompt.

    The prompt is "" if the text is empty. Raises UnknownPromptError, which names three prompts near
    in meaning, if the model knows nothing in it.
    """
    text = unicodedata.normalize("NFKC", text).replace("\u200d", "")  # what joins emoji
    if not text.strip():
        return "", None
    spans = list(spans_of(text, known))
    drawn = thing_of(spans, lambda span: span.known)
    if drawn is None:
        new = thing_of(spans, lambda span: len(span.prompts) > 1)
        knows = "near in meaning it knows" if new else "it knows, for example,"
        *first, last = map(quote, new.prompts if new else known[""])
        raise UnknownPromptError(
            f"This model does not know {quote(text.strip())}; {knows} {', '.join(first)} and "
            f"{last}."
        )
    (prompt,), quality = drawn.prompts, None
    before = [span for span in spans[: spans.index(drawn)] if text[span.end] != "-"]
    if found := with_quality(before, drawn, known):
        prompt, quality = found
    things = [span for span in spans if span.phrase not in EMPTY]
    rest = [span for span in things if span.prompts != drawn.prompts and span is not quality]
    if not rest and drawn.phrase == key(prompt):
        return prompt, None
    also = [span for span in rest if is_name(span)]
    new = [span for span in rest if span not in also]
    said = f"drawn: {prompt}"
    if new:
        said += f"; new to this model and left out: {listed(text, new)}"
    if also:
        said += f"; one thing at a time, so left out: {listed(text, also)}"
    return prompt, said


def thing_of(spans: Sequence[Span], fits: Callable[[Span], bool]) -> Span | None:
    """The first span that fits; of several words in a row the last, as "apple pie" is a pie."""
    thing = None
    for span in spans:
        if fits(span) and (thing is None or span.phrase[0].isalnum()):
            thing = span
        elif thing and span.phrase not in JOINING:
            break
    return thing


def with_quality(before: Sequence[Span], drawn: Span, known: Known) -> tuple[str, Span] | None:
    """The prompt of a thing with a quality that is typed before it, such as a colour, and its span.

    A quality alone has three near prompts that begin with it: of blue, a blue cat.
    """
    thing = key(drawn.prompts[0])
    for span in reversed(before):
        if span.phrase in EMPTY - JOINING:
            break
        near = span.prompts
        if span.end == drawn.start:  # of 红猫 it is a letter in a word, which names nothing alone
            near = near or look_up(span.phrase, known)
        qualities = {key(prompt).partition(" ")[0] for prompt in near}
        if len(near) > 1 and len(qualities) == 1:
            (quality,) = qualities
            if thing.startswith(f"{quality} "):  # of a red apple, red is said already
                return drawn.prompts[0], span
            found = known.get(f"{quality} {thing}", ())
            if len(found) == 1:
                return found[0], span
    return None


def is_name(span: Span) -> bool:
    """Whether a span names a prompt: by its own words, as an emoji, or in another language."""
    if not span.known:
        return False
    name = key(span.prompts[0])
    own = {span.phrase, *singulars(span.phrase)} & {name, *singulars(name)}
    return bool(own) or not span.phrase.isascii()


def listed(text: str, spans: Sequence[Span]) -> str:
    """What was typed at these spans, each once; neighbours without a space are one."""
    parts = []
    for span in spans:
        if parts and parts[-1][1] == span.start:
            parts[-1] = parts[-1][0], span.end
        else:
            parts.append((span.start, span.end))
    typed = dict.fromkeys(text[start:end] for start, end in parts)
    return textwrap.shorten(", ".join(typed), LISTED, placeholder=" ...")


def spans_of(text: str, known: Known) -> Iterator[Span]:
    """A text in spans from left to right, each the longest phrase that the model's file has."""
    units = units_of(text)
    folded = [fold(unit[0]) for unit in units]
    longest = max(phrase.count(" ") for phrase in known) + 1
    i = 0
    while i < len(units):
        for j in range(min(i + longest, len(units)), i, -1):
            phrase = " ".join(folded[i:j])
            prompts = () if j == i + 1 and in_word(folded, i) else look_up(phrase, known)
            if prompts:
                break
        yield Span(units[i].start(), units[j - 1].end(), phrase, prompts)
        i = j


def in_word(folded: Sequence[str], i: int) -> bool:
    """Whether a unit names nothing alone: an empty word, or a letter that a word goes on after.

    Compounds end with the thing: a 花瓶 is a 瓶, not a 花.
    """
    letters = [unit for unit in folded[i : i + 2] if re.match(HAN, unit) and unit not in EMPTY]
    return folded[i] in EMPTY or len(letters) == 2


def look_up(phrase: str, known: Known) -> tuple[str, ...]:
    """What the model's file has for a phrase, in one or many; () for nothing."""
    return next((known[p] for p in (phrase, *singulars(phrase)) if p in known), ())


def key(phrase: str) -> str:
    """A phrase as ``Known`` has it: folded units with spaces between, no articles, no marks."""
    units = units_of(unicodedata.normalize("NFKC", phrase))
    return " ".join(fold(unit[0]) for unit in units if unit[0] not in MARKS)


def units_of(text: str) -> list[re.Match[str]]:
    """The words, letters of Chinese and Japanese, emoji and marks of a text, without articles.

    An emoji of several (a bear and a snowflake, joined) is several units, so that one that nobody
    knows is read as its parts.
    """
    return [unit for unit in UNIT.finditer(text) if fold(unit[0]) not in UNREAD]


def fold(unit: str) -> str:
    """A unit in lower case, kana as katakana, without accents, apostrophes and tints."""
    plain = UNWRITTEN.sub("", unicodedata.normalize("NFD", unit.lower()))
    return unicodedata.normalize("NFC", plain).translate(KATAKANA)


def singulars(phrase: str) -> Iterator[str]:
    """What an English phrase may be the plural of."""
    for ending, singular in (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe")):
        if len(phrase) > 3 and phrase.endswith(ending) and not phrase.endswith("ss"):
            yield phrase.removesuffix(ending) + singular

"""Define the constraints of IFEval (Zhou et al., 2311.07911), one function for each name.

Each takes the response and the constraint's arguments under their published names, and returns True
if the response meets it. Runs in a scoring process, called by `constraints.py`.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

AT_LEAST, LESS_THAN = "at least", "less than"
RELATIONS = {
    AT_LEAST: lambda number, bound: number >= bound,
    LESS_THAN: lambda number, bound: number < bound,
}


def _holds(number: int, relation: str, bound: float) -> bool:
    if relation not in RELATIONS:
        raise ValueError(f"relation must be one of {sorted(RELATIONS)}, got {relation!r}")
    return bool(RELATIONS[relation](number, bound))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def number_words(response: str, *, num_words: int, relation: str) -> bool:
    """Count words; one with an apostrophe or a hyphen inside is one word."""
    return _holds(len(_words(response)), relation, num_words)


def number_sentences(response: str, *, num_sentences: int, relation: str) -> bool:
    """Count sentences: texts that end in . ! or ? before white space, and the rest."""
    parts = re.split(r"(?<=[.!?])[\"')\]]*\s+", response.strip())
    return _holds(len([part for part in parts if part]), relation, num_sentences)


def number_paragraphs(response: str, *, num_paragraphs: int) -> bool:
    """Count the texts that lines of three asterisks divide."""
    parts = re.split(r"\s?\*\*\*\s?", response)
    if not parts[0].strip():
        parts = parts[1:]
    if parts and not parts[-1].strip():
        parts = parts[:-1]
    return len(parts) == num_paragraphs and all(part.strip() for part in parts)


def number_characters(response: str, *, num_characters: int, relation: str) -> bool:
    """Count characters, surrounding white space apart."""
    return _holds(len(response.strip()), relation, num_characters)


def keywords_exist(response: str, *, keywords: Sequence[str]) -> bool:
    """Find every keyword as a whole word, in any case."""
    return all(_count(response, word) for word in keywords)


def forbidden_words(response: str, *, forbidden_words: Sequence[str]) -> bool:
    """Find none of the words as a whole word, in any case."""
    return not any(_count(response, word) for word in forbidden_words)


def keyword_frequency(response: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """Count a keyword as a whole word, in any case."""
    return _holds(_count(response, keyword), relation, frequency)


def _count(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE))


def letter_frequency(response: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """Count a letter, in any case."""
    return _holds(response.casefold().count(letter.casefold()), let_relation, let_frequency)


def number_placeholders(response: str, *, num_placeholders: int) -> bool:
    """Find so many [placeholders] at least."""
    return len(re.findall(r"\[[^\[\]]+\]", response)) >= num_placeholders


def postscript(response: str, *, postscript_marker: str) -> bool:
    """Find a line that begins with the marker, such as "P.S.", with words after it."""
    return bool(re.search(rf"(?im)^\s*{re.escape(postscript_marker)}\s*\S", response))


def number_bullets(response: str, *, num_bullets: int) -> bool:
    """Count the lines that begin with "* " or "- "."""
    return len(re.findall(r"(?m)^\s*[*-]\s+\S", response)) == num_bullets


def number_highlights(response: str, *, num_highlights: int) -> bool:
    """Find so many *highlighted* or **highlighted** texts at least."""
    marked = re.findall(
        r"\*\*[^*\n]*[^*\s][^*\n]*\*\*|(?<!\*)\*[^*\n]*[^*\s][^*\n]*\*(?!\*)", response
    )
    return len(marked) >= num_highlights


def number_sections(response: str, *, section_spliter: str, num_sections: int) -> bool:
    """Find so many sections at least, such as "Section 1", each at the beginning of a line."""
    heads = re.findall(rf"(?m)^\W*{re.escape(section_spliter.strip())}\s+\d+", response)
    return len(heads) >= num_sections


def json_format(response: str) -> bool:
    """Read the whole response as JSON, inside one fence or not."""
    text = re.sub(r"^```(?:json)?\s*\n|\n?```$", "", response.strip(), flags=re.IGNORECASE)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def title(response: str) -> bool:
    """Find a title in <<double angular brackets>>."""
    return any(found.strip() for found in re.findall(r"<<([^<>\n]+)>>", response))


def constrained_response(response: str) -> bool:
    """Find one of the three answers: "My answer is yes.", "... no.", "... maybe."."""
    return any(f"My answer is {word}." in response for word in ("yes", "no", "maybe"))


def repeat_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    """Begin with the text that shall be repeated, in any case."""
    return response.strip().casefold().startswith(prompt_to_repeat.strip().casefold())


def two_responses(response: str) -> bool:
    """Give two different texts that six asterisks divide."""
    parts = [part.strip() for part in response.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def end_checker(response: str, *, end_phrase: str) -> bool:
    """End with a phrase, in any case; quotation marks after it are allowed."""
    return response.strip().rstrip("\"'").casefold().endswith(end_phrase.strip().casefold())


def quotation(response: str) -> bool:
    """Stand in double quotation marks."""
    text = response.strip()
    return len(text) > 2 and text.startswith('"') and text.endswith('"')


def capital_word_frequency(response: str, *, capital_frequency: int, capital_relation: str) -> bool:
    """Count words in capital letters."""
    capitals = [word for word in _words(response) if word.isupper()]
    return _holds(len(capitals), capital_relation, capital_frequency)


def english_capital(response: str) -> bool:
    """Hold English text without small letters."""
    return response.isupper() and _is_language(response.lower(), "en")


def english_lowercase(response: str) -> bool:
    """Hold English text without capital letters."""
    return response.islower() and _is_language(response, "en")


def no_comma(response: str) -> bool:
    """Hold no comma."""
    return "," not in response


def response_language(response: str, *, language: str) -> bool:
    """Hold text in a language, given by its ISO 639-1 code such as "de" or "zh"."""
    return _is_language(response, language)


def _is_language(text: str, language: str) -> bool:
    import langdetect
    from langdetect.lang_detect_exception import LangDetectException

    langdetect.DetectorFactory.seed = 0  # or short texts would be judged by chance
    try:
        return str(langdetect.detect(text)).split("-")[0] == language.split("-")[0].lower()
    except LangDetectException:  # no letters in it
        return False


CHECKS: Mapping[str, Callable[..., bool]] = MappingProxyType(
    {
        "change_case:capital_word_frequency": capital_word_frequency,
        "change_case:english_capital": english_capital,
        "change_case:english_lowercase": english_lowercase,
        "combination:repeat_prompt": repeat_prompt,
        "combination:two_responses": two_responses,
        "detectable_content:number_placeholders": number_placeholders,
        "detectable_content:postscript": postscript,
        "detectable_format:constrained_response": constrained_response,
        "detectable_format:json_format": json_format,
        "detectable_format:multiple_sections": number_sections,
        "detectable_format:number_bullet_lists": number_bullets,
        "detectable_format:number_highlighted_sections": number_highlights,
        "detectable_format:title": title,
        "keywords:existence": keywords_exist,
        "keywords:forbidden_words": forbidden_words,
        "keywords:frequency": keyword_frequency,
        "keywords:letter_frequency": letter_frequency,
        "language:response_language": response_language,
        "length_constraints:number_characters": number_characters,
        "length_constraints:number_paragraphs": number_paragraphs,
        "length_constraints:number_sentences": number_sentences,
        "length_constraints:number_words": number_words,
        "punctuation:no_comma": no_comma,
        "startend:end_checker": end_checker,
        "startend:quotation": quotation,
    }
)


def arguments_of(name: str) -> set[str]:
    """Return the names of the arguments that a constraint takes."""
    parameters = inspect.signature(CHECKS[name]).parameters.values()
    return {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}

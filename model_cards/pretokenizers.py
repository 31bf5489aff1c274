"""How llama.cpp splits text before byte-pair merging: one row for each `tokenizer.ggml.pre`.

Owns the table name -> patterns and defaults, equal to llama.cpp's in effect (src/llama-vocab.cpp, src/unicode.cpp, read
at llama-cpp-python 0.3.36). Knows nothing of vocabularies. Patterns are in Oniguruma's dialect, applied one after
another: each splits the pieces that the one before left, and what it does not match stays a piece.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class PreTokenizer(NamedTuple):
    """What one `tokenizer.ggml.pre` means."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    """A piece that is a token as it stands is taken whole."""
    add_bos: bool = False
    add_sep: bool = False
    clean_spaces: bool = True
    has_bos: bool = True
    """False: no begin-of-text token unless the file names one."""
    is_raw: bool = False
    """Merges run on UTF-8 with U+2581 for spaces and `<0xXX>` byte tokens, not on GPT-2's byte alphabet."""

    @property
    def dated_patterns(self) -> tuple[str, ...]:
        """`patterns` with every `\\p{L}` meaning what it means in llama.cpp's tables, which are Unicode 15.1's.

        Oniguruma knows Unicode 16: 5,185 characters more, which are of no category there.
        """
        return tuple(_CATEGORY.sub(_date, pattern) for pattern in self.patterns)


_CATEGORY = re.compile(r"\\([pP])\{([LMNPS])\}")


def _class(ranges: str) -> str:
    """Character class out of hexadecimal code points and ranges: `41-5A B5`."""
    return "[" + "".join("-".join(rf"\x{{{code}}}" for code in item.split("-")) for item in ranges.split()) + "]"


_UNICODE_16 = _class(
    "897 1B4E-1B4F 1B7F 1C89-1C8A 2427-2429 31E4-31E5 A7CB-A7CD A7DA-A7DC 105C0-105F3 10D40-10D65 10D69-10D85 "
    "10D8E-10D8F 10EC2-10EC4 10EFC 11380-11389 1138B 1138E 11390-113B5 113B7-113C0 113C2 113C5 113C7-113CA "
    "113CC-113D5 113D7-113D8 113E1-113E2 116D0-116E3 11BC0-11BE1 11BF0-11BF9 11F5A 13460-143FA 16100-16139 "
    "16D40-16D79 18CFF 1CC00-1CCF9 1CD00-1CEB3 1E5D0-1E5FA 1E5FF 1F8B2-1F8BB 1F8C0-1F8C1 1FA89 1FA8F 1FABE 1FAC6 "
    "1FADC 1FADF 1FAE9 1FBCB-1FBEF"
)


def _date(match: re.Match[str]) -> str:
    negation = "^" if match[1] == "P" else ""
    return rf"[{negation}[\p{{{match[2]}}}&&[^{_UNICODE_16}]]]"


_CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_PUNCTUATION}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_UFAKZEKA = rf"{_WORD}|\p{{N}}|{_PUNCTUATION}|{_SPACES}"
_MINICPM5 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+|{_PUNCTUATION}|{_SPACES}"
_JAIS2 = (
    rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_PUNCTUATION}|\s*[\r\n]+|"
    + "|".join(rf"\s{{{size}}}(?!\S)" for size in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
    + r"|\s"
)
_BAILING = rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORD}|\p{{N}}|{_PUNCTUATION}|\s*[\r\n]|\s+(?!\S)|\s+"
_SEED_CODER = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_EXAONE_MOE = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)


def cased_words(upper: str, lower: str, contractions: str, digits: str) -> str:
    """gpt-4o's and tekken's shape: a word is capitals then small letters; `upper`, `lower` are character classes."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    words = f"{lead}{upper}*{lower}+{contractions}|{lead}{upper}+{lower}*{contractions}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


# llama.cpp knows the case of ASCII letters only; its rewritten expressions call every other letter both.
_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
_UPPER_M, _LOWER_M = r"[[\p{L}\p{M}]&&[^a-z]]", r"[[\p{L}\p{M}]&&[^A-Z]]"
_ANY_LETTER = r"[\p{L}\p{M}]"
_TEKKEN = cased_words(_UPPER, _LOWER, "", r"\p{N}")
_GPT4O = cased_words(_UPPER, _LOWER, f"{_CONTRACTIONS}?", r"\p{N}{1,3}")
_GRANITE_EMBED = cased_words(_UPPER_M, _LOWER_M, f"{_CONTRACTIONS}?", r"\p{N}{1,3}")
_TINY_AYA = cased_words(_ANY_LETTER, _ANY_LETTER, f"{_CONTRACTIONS}?", r"\p{N}{1,3}")
_YOUTU = cased_words(_ANY_LETTER, _ANY_LETTER, f"{_CONTRACTIONS}?", r"\p{N}")


_ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
# Whitespace is invisible to llama.cpp's literal ranges: it has been replaced by then.
_CJK = rf"[{_class('4E00-9FA5 800-4E00 AC00-D7FF')}&&\S]"
_CJK_KANA = _class("4E00-9FA5 3040-309F 30A0-30FF")
_DEEPSEEK_WORDS = rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
_DEEPSEEK3 = rf"{_DEEPSEEK_WORDS}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
_SPARK = rf"{_DEEPSEEK_WORDS}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+"
# Latin, Greek, Cyrillic, Armenian, Georgian ... letters, as deepseek-llm lists them.
_DEEPSEEK_LETTERS = _class(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C  "
    "38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B  "
    "1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D  "
    "1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102  "
    "2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183  "
    "2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E  "
    "AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2  "
    "10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_DEEPSEEK_PUNCTUATION = rf"[{_class('21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002')}&&\S]"
# CJK, Thai, Lao, Khmer, Burmese, Hangul.
_AFMOE_SCRIPTS = _class(
    "4E00-9FFF 3400-4DBF 8C48-FAFF 3040-309F 30A0-30FF FF65-FF9F 2F00-2FDF E40-E7F E80-EFF 1780-17FF  "
    "1000-109F AA60-AA7F A9E0-A9FF AC00-D7AF 1100-11FF"
)

# Digits in groups of three from the right. llama.cpp leaves what precedes a number joined to its first group.
_DIGIT_GROUPS = r"\P{N}++(?:\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N})))?|\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_HAN = _class("4E00-9FFF 3400-4DBF 20000-2A6DF 2A700-2B73F 2B740-2B81F 2B820-2CEAF 2CEB0-2EBEF F900-FAFF 2F800-2FA1F")
_KIMI_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN[1:-1]}]]+{_CONTRACTIONS}?"
_KIMI_K2 = rf"{_HAN}+|{_KIMI_WORD}|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_SPACES}"
_BLOOM = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+"
_YOUTU_SCRIPTS = "|".join(
    _class(ranges) + "+"
    for ranges in (
        "AC00-D7A3 3131-318E",
        "FF01 2026 201C 201D 2018 2019 2014 FF1A FF1B FF0C 3001-303F FE30-FE4F",
        "3105-312F",
        "4E00-9FA5 3040-309F 30A0-30FF",
    )
)
_LINES = r"[^\n]+|\n+"

_DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
_PLAIN_GPT2 = PreTokenizer((_GPT2,))
_LLAMA3_LIKE = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2_LIKE = PreTokenizer((_QWEN2,), clean_spaces=False)
_SINGLE_DIGITS = PreTokenizer((r"\p{N}", _GPT2))
_DEEPSEEK3_LIKE = PreTokenizer((r"\p{N}{1,3}", _CJK_KANA + "+", _DEEPSEEK3), clean_spaces=False)
_GPT4O_LIKE = PreTokenizer((_GPT4O,), clean_spaces=False)
_BAILING_LIKE = PreTokenizer((_BAILING,), clean_spaces=False)
_TINY_AYA_LIKE = PreTokenizer((_DIGIT_GROUPS, _TINY_AYA), clean_spaces=False)
_BLOOM_LIKE = PreTokenizer((_BLOOM,))


def _rows(names: str, row: PreTokenizer) -> dict[str, PreTokenizer]:
    return dict.fromkeys(names.split(), row)


PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _DEFAULT,
    **_rows("llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", _LLAMA3_LIKE),
    **_rows(
        "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt olmo jais exaone4",
        _PLAIN_GPT2,
    ),
    **_rows("jina-v1-en jina-v2-code roberta-bpe", _PLAIN_GPT2._replace(add_sep=True)),
    **_rows("trillion granite-docling", _PLAIN_GPT2._replace(clean_spaces=False)),
    **_rows("qwen2 deepseek-r1-qwen kormo f2llmv2 hunyuan solar-open grok-2", _QWEN2_LIKE),
    **_rows("stablelm2 megrez", _QWEN2_LIKE._replace(clean_spaces=True)),
    **_rows("starcoder refact codeshell exaone minerva-7b mellum2", _SINGLE_DIGITS),
    **_rows("command-r smollm", _SINGLE_DIGITS._replace(clean_spaces=False)),
    **_rows("deepseek-v3 hunyuan-dense hy_v4 joyai-llm", _DEEPSEEK3_LIKE),
    **_rows("dbrx smaug-bpe", PreTokenizer((_LLAMA3,))),
    **_rows("gpt-4o llama4 kanana2 talkie minimax-m2", _GPT4O_LIKE),
    **_rows("bailingmoe bailingmoe2 llada-moe", _BAILING_LIKE),
    **_rows("tiny_aya cohere2moe", _TINY_AYA_LIKE),
    **_rows("glm4 glm5", PreTokenizer((_LLAMA3,), ignore_merges=True, has_bos=False)),
    **_rows("gemma4 granite-embed-multi-311m", PreTokenizer((_LINES,), is_raw=True)),
    "chatglm-bpe": PreTokenizer((_LLAMA3,), has_bos=False),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _MINICPM5), ignore_merges=True),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?{_DEEPSEEK_LETTERS}+",
            rf"\s?{_DEEPSEEK_PUNCTUATION}+",
            r"\s+\z",
            _CJK + "+",
            r"\p{N}+",
        ),
        clean_spaces=False,
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK + "+", r"\p{N}"), clean_spaces=False),
    "spark2_5": PreTokenizer((r"\p{N}{1,3}", _CJK_KANA + "+", _SPARK, r"\p{N}"), clean_spaces=False),
    "youtu": PreTokenizer((_YOUTU_SCRIPTS, _YOUTU), ignore_merges=True, clean_spaces=False),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "jais-2": PreTokenizer((_JAIS2,)),
    "sarvam-moe": PreTokenizer((_LINES,), is_raw=True, clean_spaces=False),
    "qwen35": PreTokenizer((_QWEN35,), clean_spaces=False),
    "poro-chat": _BLOOM_LIKE._replace(clean_spaces=False),
    "bloom": _BLOOM_LIKE,
    "gpt3-finnish": _BLOOM_LIKE,
    "viking": PreTokenizer((_BLOOM, r"\p{N}"), clean_spaces=False),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True, clean_spaces=False),
    "exaone-moe": PreTokenizer((_EXAONE_MOE,)),
    "chameleon": PreTokenizer(
        (
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
        clean_spaces=False,
    ),
    "granite-embed-multi-97m": PreTokenizer((_GRANITE_EMBED,), ignore_merges=True, clean_spaces=False),
    "superbpe": PreTokenizer((r"\p{N}+", "(?=(?:[0-9]{3})+(?![0-9]))"), clean_spaces=False),
    "seed-coder": PreTokenizer((_SEED_CODER,), clean_spaces=False),
    "kimi-k2": PreTokenizer((_KIMI_K2,), clean_spaces=False),
    "ufakzeka": PreTokenizer((_UFAKZEKA,), clean_spaces=False),
    "afmoe": PreTokenizer((_DIGIT_GROUPS, _AFMOE_SCRIPTS + "+", _DEEPSEEK3), clean_spaces=False),
    "laguna": PreTokenizer((_LINES, _QWEN2), clean_spaces=False),
}
"""`tokenizer.ggml.pre` -> row; names that llama.cpp does not know are errors there and here."""

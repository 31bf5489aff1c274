"""Texts that tokenizers disagree about, drawn from a seed."""

from __future__ import annotations

import random

_TEXT = """the Hello don't I'M we'LL they've x return naïve Ünïcödé straße ǅungla İstanbul Привет שלום مرحبا हिन्दी বাংলা
ไทย 日本語 テキスト 漢字 한국어 ｆｕｌｌ ﬁ 𝔘𝔫𝔦
12 1234 1234567 ١٢٣ ½ 3.14 1e-9 http://ex.com/?q=a&b=c#d C:/path a@b.co $5
{"a":[1,2]} ... == => ** /* '' “q” …— 。，！？ 🙂 👍🏽 🇩🇪 ạ̈ \u2581 Ġ <0x0A> <s> </s> <unk> <|im_start|> <|im_end|>
<|endoftext|> [CLS] 'ſ 'D"""
_WORDS = [*_TEXT.split(), *"\u200b\ufeff\xa0\u3000\u2028\x85\0\x1b\x7f\xad\ue000\ufffd", "👩\u200d👩\u200d👧"]
_GAPS = [
    "",
    "",
    " ",
    " ",
    " ",
    "  ",
    "    ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    " \n",
    "\n ",
    "\r",
    "\x0b",
    "\xa0",
    "\u3000",
    ",",
    "-",
]


def nasty_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    texts = ["", " ", "  ", "\n", "\0", "a\0b"]
    while len(texts) < count:
        kind = rng.random()
        if kind < 0.7:
            texts.append("".join(rng.choice(_WORDS) + rng.choice(_GAPS) for _ in range(rng.randint(1, 20))))
        elif kind < 0.85:
            texts.append("".join(rng.choice(" \n\r\tab1'.é中") for _ in range(rng.randint(1, 50))))
        else:
            texts.append(rng.choice([*_WORDS, "a", " ", "1", ".", "é", "中"]) * rng.randint(2, 60))
    return texts[:count]

"""Run as a script: what llama.cpp's own tokenizer says, as JSON (LIBRARY MODEL, texts on stdin).

A process of its own, because the library aborts on what it does not like.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from runner.engines.llamacpp.binding import ModelParams

Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@Log
def be_quiet(_level: int, _text: bytes, _data: object) -> None:
    pass


class Vocabulary:
    def __init__(self, library: str, model: str) -> None:
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")
        self.c = ctypes.CDLL(library)
        self.c.llama_log_set(be_quiet, None)
        self.c.llama_backend_init()
        pointer = ctypes.c_void_p
        self.c.llama_model_default_params.restype = ModelParams
        self.c.llama_model_load_from_file.argtypes = [ctypes.c_char_p, ModelParams]
        self.c.llama_model_load_from_file.restype = pointer
        self.c.llama_model_get_vocab.argtypes, self.c.llama_model_get_vocab.restype = [pointer], pointer
        params = self.c.llama_model_default_params()
        params.vocab_only = True
        loaded = self.c.llama_model_load_from_file(model.encode(), params)
        assert loaded, f"llama.cpp cannot load {model}"
        self.vocab = pointer(self.c.llama_model_get_vocab(loaded))

    def encode(self, text: str, parse_special: bool) -> list[int]:
        raw = text.encode()
        room = len(raw) + 16
        ids = (ctypes.c_int32 * room)()
        flags = (ctypes.c_bool(False), ctypes.c_bool(parse_special))
        count = self.c.llama_tokenize(self.vocab, raw, len(raw), ids, room, *flags)
        assert count >= 0
        return list(ids[:count])

    def piece(self, token_id: int) -> bytes:
        buffer = ctypes.create_string_buffer(4096)
        size = self.c.llama_token_to_piece(self.vocab, token_id, buffer, len(buffer), 0, ctypes.c_bool(True))
        return buffer.raw[:size]


def main() -> None:
    vocabulary = Vocabulary(sys.argv[1], sys.argv[2])
    texts: list[str] = json.load(sys.stdin)
    ids = range(vocabulary.c.llama_vocab_n_tokens(vocabulary.vocab))
    answer: dict[str, Any] = {
        "plain": [vocabulary.encode(text, False) for text in texts],
        "parsed": [vocabulary.encode(text, True) for text in texts],
        "ends": [index for index in ids if vocabulary.c.llama_vocab_is_eog(vocabulary.vocab, index) & 1],
        "pieces": [vocabulary.piece(index).hex() for index in ids],
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()

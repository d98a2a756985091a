"""Writes test/fixtures/tokenizer-smollm2.json: texts and the token ids that the Python library
`tokenizers` gives for them, with the vocabulary of a GGUF file of SmolLM2 and the pre-tokenizer of
the model's original tokenizer.json (Digits, then ByteLevel).

    pip install tokenizers gguf
    python bench/make_tokenizer_fixtures.py SmolLM2-135M-Instruct.gguf
"""

import json
import random
import sys
from pathlib import Path

from gguf import GGUFReader
from tokenizers import Tokenizer

TEXTS = [
    "Hello, world! It's 12345 o'clock.",
    "  leading and trailing  ",
    "\n\n\ttabs\n  mixed \r\n line ends\r\n\r\n",
    "na\u00efve caf\u00e9 Stra\u00dfe \ufb01 ligature \u03a9 e\u0301",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\u4e2d\u6587\u6587\u672c\uff0c\ud55c\uad6d\uc5b4",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0661\u0662\u0663 \u0939\u093f\u0928\u094d\u0926\u0940 \u0967\u0968 \u0e44\u0e17\u0e22 \u0e51\u0e52",
    "\U0001f600\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "\u0085x\ufeffy\u00a0z\u3000w\u200bq\u2028r",
    "def f(x):\n    return x**2 + 3.14159  # comment\n",
    "a" * 300,
    " " * 50 + "x",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "don't I'LL we'Ve THEY'RE 's",
    "\u00bd \u00b2 \u2462 \u2163 10\u00b3 x\u0000y\u0001",
    "{}[]()<>!?;:'\"\\|/~`@#$%^&*-_=+",
    "https://example.com/a?b=c&d=%20",
    "",
]
ALPHABET = list("abc dehij klmnop  \n\t'.,019ABC") + list(
    "\u00e9\u00fc\u00df\u4e2d\u65e5\U0001f642\u0301\u200d\u00b2\u00bd\u0663\u0964\u2013\u201c\u2026\u00a0\ufeff\u0085"
)


def build(path: str) -> Tokenizer:
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [merge.split(" ", 1) for merge in fields["tokenizer.ggml.merges"].contents()]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return Tokenizer.from_str(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [
                    {"id": i, "content": token, **flags}
                    for i, (token, kind) in enumerate(zip(tokens, types))
                    if kind == 3
                ],
                "normalizer": None,
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
                },
                "post_processor": None,
                "decoder": byte_level,
                "model": {
                    "type": "BPE",
                    "dropout": None,
                    "unk_token": None,
                    "continuing_subword_prefix": None,
                    "end_of_word_suffix": None,
                    "fuse_unk": False,
                    "byte_fallback": False,
                    "ignore_merges": False,
                    "vocab": {token: i for i, token in enumerate(tokens)},
                    "merges": merges,
                },
            }
        )
    )


def main() -> None:
    tokenizer = build(sys.argv[1])
    rng = random.Random(7)
    texts = TEXTS + ["".join(rng.choices(ALPHABET, k=rng.randint(1, 60))) for _ in range(200)]
    cases = [{"text": text, "ids": tokenizer.encode(text).ids} for text in texts]
    target = Path(__file__).parent.parent / "test/fixtures/tokenizer-smollm2.json"
    target.write_text(json.dumps(cases, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

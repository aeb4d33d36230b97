"""The demo judge's tokenizer: one token a byte, no learnt merges, any UTF-8 text.

Token ids 0 to 255 are the byte values themselves, so training encodes text without the tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

BOS: Final = 256
EOS: Final = 257
PAD: Final = 258
VOCAB_SIZE: Final = 259
_NAMES: Final = {BOS: "<s>", EOS: "</s>", PAD: "<pad>"}


def byte_symbols() -> list[str]:
    """The characters that the `ByteLevel` pre-tokenizer writes for the 256 byte values.

    Printable Latin-1 bytes stand for themselves; the others take the code points from 256 on.
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def save_tokenizer(directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; BOS is put before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    vocab |= {name: token for token, name in _NAMES.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_NAMES[BOS]} $A", special_tokens=[(_NAMES[BOS], BOS)]
    )
    names = {"bos_token": _NAMES[BOS], "eos_token": _NAMES[EOS], "pad_token": _NAMES[PAD]}
    options = {"clean_up_tokenization_spaces": False, "model_max_length": 4096}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **options)
    made.save_pretrained(directory)

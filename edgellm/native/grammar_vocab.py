"""llguidance's view of a model's vocabulary."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from edgellm.errors import ConstraintError
from edgellm.native.library import lib

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from edgellm.native.vocabulary import Vocabulary

_CONTROL = 1 << 3  # LLAMA_TOKEN_ATTR_CONTROL
_USER_DEFINED = 1 << 4  # LLAMA_TOKEN_ATTR_USER_DEFINED

_made: WeakKeyDictionary[Vocabulary, LLTokenizer] = WeakKeyDictionary()


def grammar_tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    """The tokenizer that constraints of this model share, made once. It must not be used after the model closed.

    Control tokens carry the byte 0xff in front, so that no text of a grammar can spell one. Every token that
    ends a generation ends a grammar. Raises ConstraintError for a vocabulary without any.
    """
    tokenizer = _made.get(vocabulary)
    if tokenizer is None:
        tokenizer = _made[vocabulary] = _make(vocabulary)
    return tokenizer


def _make(vocabulary: Vocabulary) -> LLTokenizer:
    import llguidance

    llama = lib()
    ends = [token for token in range(vocabulary.size) if vocabulary.is_eog(token)]
    if vocabulary.eos in ends:
        # The first is the one llguidance names "the" end.
        ends.remove(vocabulary.eos)
        ends.insert(0, vocabulary.eos)
    if not ends:
        raise ConstraintError(
            "the model's vocabulary has no token that ends a text.",
            hint="Constraints need one; use another model.",
        )
    pieces = [_grammar_bytes(vocabulary, token) for token in range(vocabulary.size)]
    address = ctypes.cast(llama._lib.llama_tokenize, ctypes.c_void_p).value
    # Not in llguidance's type stubs; its own llamacpp.py makes tokenizers so.
    tokenizer: LLTokenizer = llguidance.LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
        tokens=pieces,
        vocab_ptr=vocabulary.pointer,
        tokenize_fptr=address,
        eos_token=ends,
    )
    return tokenizer


def _grammar_bytes(vocabulary: Vocabulary, token: int) -> bytes:
    piece = vocabulary.piece(token)
    attributes: int = lib().llama_vocab_get_attr(vocabulary.pointer, token)
    looks_like_control = piece.startswith(b"<") and piece.endswith(b">")
    if attributes & _CONTROL or (attributes & _USER_DEFINED and looks_like_control):
        return b"\xff" + piece
    return piece

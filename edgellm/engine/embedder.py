"""Embeddings: texts to unit vectors, in a context of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgellm.errors import ContextFull, DecodeError, ModelUnsupported
from edgellm.native.context import Context, DecodeStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgellm.native.model import Model
    from edgellm.native.overlay import Overlay
    from edgellm.types import LoadOptions


class Embedder:
    """Pooled embeddings of a model with the adapters it was loaded with: pooling as the GGUF says, else the mean."""

    def __init__(self, model: Model, options: LoadOptions, overlay: Overlay) -> None:
        n_ctx = options.n_ctx or min(model.n_ctx_train, 2048)
        # A text is one batch: pooling runs over the tokens that are decoded together.
        options = replace(options, n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=n_ctx)
        self.context = Context(model, options, embeddings=True)
        self.context.use(overlay)
        self.model = model

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings (len(texts), n_embd), float32, each of L2 norm 1.

        Raises ContextFull for a text longer than the context, DecodeError, ModelUnsupported.
        """
        rows = [self._embed(text) for text in texts]
        return np.stack(rows) if rows else np.empty((0, self.model.n_embd), dtype=np.float32)

    def _embed(self, text: str) -> NDArray[np.float32]:
        tokens = self.model.vocabulary.tokenize(text, add_special=True)
        if not tokens:
            tokens = self.model.vocabulary.tokenize(" ")
        if len(tokens) > self.context.n_batch:
            raise ContextFull(
                f"a text of {len(tokens)} tokens exceeds the embedding context of {self.context.n_batch}.",
                hint="Split the text, or load the model with a larger n_ctx.",
            )
        self.context.remove(0, -1)
        status = self.context.decode([(token, i, 0, True) for i, token in enumerate(tokens)])
        if status is not DecodeStatus.DONE:
            raise DecodeError(
                f"llama.cpp failed to embed a text of {len(tokens)} tokens.", hint="Reload the model."
            )
        vector = self.context.embeddings(0)
        norm = float(np.linalg.norm(vector))
        if not np.isfinite(norm) or norm == 0.0:
            raise ModelUnsupported("the model gives no usable embedding.", hint="Use an embedding model.")
        return (vector / norm).astype(np.float32)

    def close(self) -> None:
        """Frees the context."""
        self.context.close()

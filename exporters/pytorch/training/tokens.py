"""Texts as tokens: byte pair encoding that is learnt from the texts themselves, and padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

PAD = "[PAD]"


class BytePairs:
    """Byte-level byte pair encoding (Sennrich et al., arXiv:1508.07909); any text is encoded.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        From `learn` or `read`.

    Examples
    --------
    >>> pairs = BytePairs.learn(["low lower lowest", "slow slower"], vocabulary=264)
    >>> tokens, lengths = pairs.encode(["slower", "low"], length=6)
    >>> lengths.tolist(), tokens[1, int(lengths[1]):].unique().tolist()
    ([2, 1], [0])
    >>> pairs.decode(tokens[0])
    'slower'
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    @classmethod
    def learn(cls, texts: Iterable[str], vocabulary: int = 1024) -> BytePairs:
        """From texts; all 256 bytes and the padding, token 0, are among its tokens."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if vocabulary < 257:
            raise ValueError(f"vocabulary must be >= 257, got {vocabulary}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def read(cls, text: str) -> BytePairs:
        """From what `written` answered."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(text))

    def written(self) -> str:
        """As JSON: the tokenizer.json of the `tokenizers` library."""
        return str(self.tokenizer.to_str())

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return int(self.tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (b, n) int64, padded behind, and how many are there, (b,).

        `n` is `length`, and texts are cut there; without it, it is that of the longest text.
        """
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        rows = [one.ids[:length] for one in encoded]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        n = max(map(len, rows), default=0) if length is None else length
        tokens = torch.zeros(len(rows), n, dtype=torch.int64)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return tokens, lengths

    def decode(self, tokens: Tensor) -> str:
        """The text of tokens (n,), without padding."""
        return str(self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True))

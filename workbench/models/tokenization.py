"""What a model does with text, by what its tokenizer says: ids of a text, and the text of ids."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.models.masks import PaddingSide, pad_rows
from workbench.models.tokenizer_files import DescribedTokenizer, begin_ids, pad_id


class Tokenized:
    """The calls of a model that has a tokenizer, in TransformerLens's names."""

    cfg: Any
    own_tokenizer: Any = None
    """the tokenizer as it was given; that of a file is described alone until someone asks for `tokenizer`"""

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer, or None. Once it has been asked for, it is the one: what a caller sets counts."""
        if isinstance(self.own_tokenizer, DescribedTokenizer):
            self.own_tokenizer = self.own_tokenizer.wrapped
        return self.own_tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.own_tokenizer = tokenizer

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Int[Tensor, "batch pos"]:
        """Token ids of text; shorter texts are padded to the longest, on the right unless told otherwise.

        No token reads what follows it: padded on the right, all but the padding is right without a mask. On the left
        the model needs the mask, which ids do not tell (EOS may pad, and may stand in a text): see `to_batch`.

        Unless `prepend_bos` is False, first comes what the tokenizer itself puts before a text, often nothing
        (TransformerLens puts BOS before every text); with True, where the tokenizer puts nothing, BOS, or EOS where
        there is no BOS.

        Raises:
            ValueError: as `to_batch`.
        """
        tokens, _ = self.to_batch(input, prepend_bos, padding_side, truncate)
        return tokens if move_to_device else tokens.cpu()

    def to_batch(
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        truncate: bool = True,
    ) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """(tokens, attention_mask): `to_tokens`, and True where these are the texts', False at padding.

        Raises:
            ValueError: no tokenizer, a tokenizer without BOS when one is asked for, or without any token to pad with
                when the texts are of unequal lengths.
        """
        self._check_tokenizer("to_tokens")
        if padding_side not in (None, "left", "right"):
            raise ValueError(f"padding_side: got {padding_side!r}; expected 'left' or 'right'")
        texts = [input] if isinstance(input, str) else input
        tokenizer = self.own_tokenizer
        lead = [] if prepend_bos is False else begin_ids(tokenizer)
        if prepend_bos and not lead:
            named = (tokenizer.bos_token_id, tokenizer.eos_token_id)
            lead = [token for token in named if token is not None][:1]
            if not lead:
                raise ValueError("to_tokens: the tokenizer has no BOS token; expected prepend_bos=False")
        rows = [lead + tokenizer.encode(t, add_special_tokens=False) for t in texts]
        rows = [r[: self.cfg.n_ctx] if truncate else r for r in rows]
        filler = pad_id(tokenizer)
        if filler is None and len({len(r) for r in rows}) > 1:
            raise ValueError(
                f"to_tokens: texts are {[len(r) for r in rows]} tokens long, and the tokenizer names neither pad_token "
                "nor eos_token; expected one of them, or texts of one length"
            )
        tokens, is_token = pad_rows(rows, filler or 0, padding_side or "right")
        return tokens.to(self.cfg.device), is_token.to(self.cfg.device)

    def to_string(self, tokens: Tensor | list[int]) -> str | list[str]:
        """The text of token ids [pos], or the texts of [batch pos]."""
        self._check_tokenizer("to_string")
        tokens = torch.as_tensor(tokens)
        decode = self.tokenizer.batch_decode if tokens.ndim == 2 else self.tokenizer.decode
        return decode(tokens, clean_up_tokenization_spaces=False)

    def to_str_tokens(self, input: str | Tensor | list, prepend_bos: bool | None = None) -> list:
        """The text of each token of a text or of ids [pos] or [1 pos]; of a list, one such list for each of it."""
        self._check_tokenizer("to_str_tokens")
        if isinstance(input, list):
            return [self.to_str_tokens(one, prepend_bos) for one in input]
        tokens = self.to_tokens(input, prepend_bos)[0] if isinstance(input, str) else input
        ids = [[int(token)] for token in tokens.flatten()]
        return self.tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            ValueError: it is none, or several.
        """
        ids = self.to_tokens(text, prepend_bos=False)[0].tolist()
        if len(ids) != 1:
            raise ValueError(f"to_single_token: {text!r} is {len(ids)} tokens; expected a text that is one")
        return ids[0]

    def _check_tokenizer(self, who: str) -> None:
        if self.own_tokenizer is None:
            raise ValueError(f"{who}: this model has no tokenizer; expected one given at load, or token ids")

"""Text of the files that people write."""

from __future__ import annotations

import codecs


def decode_text(data: bytes, where: str) -> str:
    """The text of a file's bytes: UTF-8, with or without a byte-order mark. Raises ValueError, which names UTF-16."""
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise ValueError(f"{where} is UTF-16; expected UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 ({error.reason} at byte {error.start}); expected UTF-8") from None

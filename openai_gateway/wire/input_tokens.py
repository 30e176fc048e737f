"""About how many tokens a request's body has, told by its bytes: text, pictures, sounds and documents.

Pure arithmetic over JSON text that nobody has parsed. See also: config.prices (what tokens cost).
"""

from __future__ import annotations

import math
import re
from typing import Final

BYTES_PER_TOKEN: Final = 4
# An image costs by its size in pixels, not in bytes: 85 to 1,600 tokens at OpenAI's models.
TOKENS_PER_IMAGE: Final = 1200
# Sounds and documents: rough, and on the high side.
_BASE64_BYTES_PER_TOKEN: Final = 40
_IMAGE: Final = re.compile(rb'"type"\s*:\s*"(?:input_image|image_url)"')
_DATA_URL: Final = re.compile(rb"data:([a-z]+)/[A-Za-z0-9.+-]+;base64,[A-Za-z0-9+/=_-]+")
_BASE64: Final = re.compile(rb'"(?:data|file_data)"\s*:\s*"[A-Za-z0-9+/=_-]{1000,}"')


def count_input_tokens(body: bytes) -> tuple[int, int]:
    """Return about how many tokens a body has, and more than it can have; pictures count as such, not as text."""
    text_bytes, other = split_input(body)
    return math.ceil(text_bytes / BYTES_PER_TOKEN) + other, text_bytes + other


def has_pictures(body: bytes) -> bool:
    """Tell whether a body holds a picture."""
    return _IMAGE.search(body) is not None


def split_input(body: bytes) -> tuple[int, int]:
    """Return how many bytes of a body are text, and about how many tokens all else in it has."""
    pictures, files, base64_bytes = len(_IMAGE.findall(body)), 0, 0
    for url in _DATA_URL.finditer(body) if b";base64," in body else ():
        base64_bytes += len(url[0])
        files += 0 if url[1] == b"image" else len(url[0])
    for data in _BASE64.finditer(body) if b'data"' in body else ():
        base64_bytes += len(data[0])
        files += len(data[0])
    return len(body) - base64_bytes, pictures * TOKENS_PER_IMAGE + math.ceil(files / _BASE64_BYTES_PER_TOKEN)

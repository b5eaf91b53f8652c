"""Turn image files into pixels and prompts with images into token ids.

Rollout workers and learner ranks make the same pixels from the same bytes; the driver reads
settings only. Knows no torch model and no engine.
"""

from workers.data.images.decoding import ImageFaultError, decode, read_file
from workers.data.images.patches import digest_of, normalised, patches_of
from workers.data.images.settings import ImageSettings, read_image_settings
from workers.data.images.spans import ImageSpan, expand

__all__ = [
    "ImageFaultError",
    "ImageSettings",
    "ImageSpan",
    "decode",
    "digest_of",
    "expand",
    "normalised",
    "patches_of",
    "read_file",
    "read_image_settings",
]

"""Turn image files into pixels and prompts with images into token ids.

Rollout workers and learner ranks make the same pixels from the same bytes; the driver reads
settings only. Knows no torch model and no engine.
"""

from workers.data.images.decoding import ImageFaultError, decode, read_file
from workers.data.images.patches import digest_of, normalised, patches_of
from workers.data.images.prompt_images import NO_IMAGES, LoadedImage, PromptImages, load_images
from workers.data.images.settings import ImageLimits, ImageSettings, read_image_settings
from workers.data.images.spans import ImageSpan, expand

__all__ = [
    "NO_IMAGES",
    "ImageFaultError",
    "ImageLimits",
    "ImageSettings",
    "ImageSpan",
    "LoadedImage",
    "PromptImages",
    "decode",
    "digest_of",
    "expand",
    "load_images",
    "normalised",
    "patches_of",
    "read_file",
    "read_image_settings",
]

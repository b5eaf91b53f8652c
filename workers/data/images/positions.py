"""Positions of tokens under rotary embeddings of three axes, for sequences with images.

Runs where rows are packed, in learner and reference ranks. The positions follow from the places and
grids of images alone, never from token ids: an image token that the policy sampled is text.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from workers.data.images.spans import ImageSpan


def rope_positions(
    length: int, spans: Sequence[ImageSpan], *, merge_size: int
) -> npt.NDArray[np.int64]:
    """Compute the positions [3, L] of one sequence: frame, row and column of every token.

    Text has the same number on all axes. An image begins at the next number; its tokens differ by
    their place in the grid, and the text behind the image goes on after the longer side (M-RoPE,
    2409.12191, section 2.1; transformers' `Qwen2_5_VLModel.get_rope_index`).

    Worked example, one token, an image of 4 x 4 patches (2 x 2 tokens), two tokens:
        frame  [0 1 1 1 1 3 4]
        row    [0 1 1 2 2 3 4]
        column [0 1 2 1 2 3 4]

    Args:
        length: tokens L of the sequence.
        spans: images of the sequence, by offset.
        merge_size: a token stands for merge_size x merge_size patches.
    """
    positions = np.empty((3, length), dtype=np.int64)
    place = number = 0
    for span in spans:
        frames, height, width = span.grid
        rows, columns = height // merge_size, width // merge_size
        text = span.offset - place
        positions[:, place : span.offset] = number + np.arange(text)
        number += text
        place = span.offset + frames * rows * columns
        inside = np.indices((frames, rows, columns)).reshape(3, -1)
        positions[:, span.offset : place] = number + inside
        number += max(rows, columns)
    positions[:, place:] = number + np.arange(length - place)
    return positions

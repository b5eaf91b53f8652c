"""Choose the number of rows of logits that the language-model head holds at a time.

Imports no torch: the driver's memory plan counts the same rows that the head takes.

Legend: V vocabulary, H hidden size.
"""

#: A chunk of float32 logits [rows, V] on a CPU, in bytes; larger is not faster there.
CPU_CHUNK_BYTES = 64 * 2**20
#: On a GPU every chunk rewrites the float32 gradient of the weight [V, H]. At this many rows that
#: is by the number of bytes a tenth of the chunk's time for H = 4096, less for smaller H.
GPU_CHUNK_ROWS = 2048
#: A chunk's logits take at most this share of a GPU's memory: 1.25 GiB of 80.
GPU_MEMORY_SHARE = 64
#: Float32 buffers of a chunk's size at the peak: logits, softmax, and the gradient in the making.
CHUNK_BUFFERS = 3


def default_chunk_rows(vocabulary: int, gpu_bytes: int | None) -> int:
    """Return the rows of float32 logits [rows, V] of a chunk; at least 1.

    The rows depend on the device's size and not on what is free there, so that equal ranks agree.

    Args:
        vocabulary: V.
        gpu_bytes: memory of the GPU that computes them, None on a CPU.
    """
    row_bytes = 4 * max(1, vocabulary)
    if gpu_bytes is None:
        return max(1, CPU_CHUNK_BYTES // row_bytes)
    return max(1, min(GPU_CHUNK_ROWS, gpu_bytes // GPU_MEMORY_SHARE // row_bytes))


def head_bytes(
    vocabulary: int, gpu_bytes: int | None, chunk_rows: int | None, *, tokens: int | None = None
) -> int:
    """Return the bytes of a chunk at its peak.

    Args:
        vocabulary: V.
        gpu_bytes: memory of the GPU that computes it, None on a CPU.
        chunk_rows: rows that were asked for; None takes the default.
        tokens: of a micro-batch, which has no more rows; None: any number.
    """
    rows = chunk_rows or default_chunk_rows(vocabulary, gpu_bytes)
    rows = rows if tokens is None else min(rows, tokens)
    return CHUNK_BUFFERS * 4 * rows * vocabulary

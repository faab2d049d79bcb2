from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loraplex_adapters.errors import AdapterIncompatibleError
from loraplex_adapters.package import read_package
from loraplex_server.base.fingerprint import fingerprint
from loraplex_server.base.resolve import check_complete
from loraplex_trainer.errors import MergeRefusedError
from loraplex_trainer.packaging.export import canonical_json
from loraplex_trainer.packaging.merge import merge, stored_bits

IDS = torch.tensor([[1, 40, 50, 60, 70, 80]])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(IDS).logits
    return found


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


@pytest.fixture
def four_bit_base(tiny_base: Path, tmp_path: Path) -> Path:
    """The base as bitsandbytes stores it in 4 bits."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(
        tiny_base,
        quantization_config=config,
        dtype=torch.float32,
        device_map={"": "cpu"},
        local_files_only=True,
    )
    folder = tmp_path / "four-bit"
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tiny_base / name).is_file():
            shutil.copyfile(tiny_base / name, folder / name)
    return folder


def test_the_merged_model_says_what_base_and_adapter_say(
    package: Path, tiny_base: Path, tmp_path: Path
) -> None:
    merge(package, tiny_base, tmp_path / "merged", dtype="fp32")

    dynamic = logits(PeftModel.from_pretrained(load(tiny_base), package))
    torch.testing.assert_close(logits(load(tmp_path / "merged")), dynamic, atol=1e-5, rtol=0)
    assert (dynamic - logits(load(tiny_base))).abs().max() > 0.1


def test_the_merged_folder_is_a_base_whose_manifest_has_its_hashes(
    package: Path, tiny_base: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    report = merge(package, tiny_base, merged)

    check_complete(merged)
    written = json.loads((merged / "manifest.json").read_text())["merged"]
    assert written["adapter_digest"] == report.adapter_digest == read_package(package).digest
    assert written["base_fingerprint"] == fingerprint(tiny_base)
    assert written["fingerprint"] == fingerprint(merged) != fingerprint(tiny_base)
    assert written["dtype"] == "bf16"
    for name, digest in written["files"].items():
        assert hashlib.sha256((merged / name).read_bytes()).hexdigest() == digest
    assert not [path for path in merged.iterdir() if path.suffix in (".bin", ".pt")]


def test_a_base_in_four_bits_is_refused_and_nothing_is_written(
    package: Path, four_bit_base: Path, tmp_path: Path
) -> None:
    assert stored_bits(four_bit_base) == 4
    with pytest.raises(MergeRefusedError, match="4 bits") as refusal:
        merge(package, four_bit_base, tmp_path / "merged")

    assert refusal.value.reason == "MERGE_REFUSED"
    assert "--dequantize" in str(refusal.value)
    assert not (tmp_path / "merged").exists()


def test_dequantized_the_merged_model_has_16_bits_and_the_rounded_weights(
    package: Path, four_bit_base: Path, tmp_path: Path
) -> None:
    # As if the adapter had been trained on that very folder.
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["base"]["fingerprint"] = fingerprint(four_bit_base)
    (package / "manifest.json").write_bytes(canonical_json(manifest))

    merge(package, four_bit_base, tmp_path / "merged", dtype="fp32", dequantize=True)

    assert stored_bits(tmp_path / "merged") is None
    merged = load(tmp_path / "merged")
    rounded = load(four_bit_base).dequantize().to(torch.float32)
    dynamic = logits(PeftModel.from_pretrained(rounded, package))
    torch.testing.assert_close(logits(merged), dynamic, atol=1e-4, rtol=0)


def test_an_adapter_trained_over_four_bits_is_merged_into_the_rounded_weights_only_when_asked(
    package: Path, tiny_base: Path, four_bit_base: Path, tmp_path: Path
) -> None:
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["base"]["trained_on"] |= {"method": "qlora-nf4", "quant": "nf4", "double_quant": False}
    (package / "manifest.json").write_bytes(canonical_json(manifest))

    with pytest.raises(MergeRefusedError, match="trained over a base in 4 bits"):
        merge(package, tiny_base, tmp_path / "merged")
    merge(package, tiny_base, tmp_path / "merged", dtype="fp32", dequantize=True)

    rounded = load(four_bit_base).dequantize().to(torch.float32)
    dynamic = logits(PeftModel.from_pretrained(rounded, package))
    torch.testing.assert_close(logits(load(tmp_path / "merged")), dynamic, atol=1e-4, rtol=0)


def test_an_adapter_of_another_base_is_not_merged(package: Path, tiny_base: Path, tmp_path: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["base"]["fingerprint"] = "0" * 64
    (package / "manifest.json").write_bytes(canonical_json(manifest))

    with pytest.raises(AdapterIncompatibleError, match="another base"):
        merge(package, tiny_base, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_existing_folder_is_not_overwritten(package: Path, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()

    with pytest.raises(MergeRefusedError, match="exists already"):
        merge(package, tiny_base, tmp_path / "merged")

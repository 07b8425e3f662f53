"""Device, arithmetic and failures, the same for every model that is loaded."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import torch

from hansard.errors import HansardError, ModelError, OutOfMemoryError, SettingsError
from hansard.settings import Settings
from hansard.transcribers.loading import check_compute_type, device_and_dtype, loading


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemoryError),
        (MemoryError(), OutOfMemoryError),
        (ValueError("/models/secret/config.json is not JSON"), ModelError),
        (Exception("tokenizer"), ModelError),
        (ModelError("said by ourselves"), ModelError),
    ],
)
def test_what_a_vendor_raises_is_ours(error: Exception, ours: type[HansardError]) -> None:
    with pytest.raises(ours) as told, loading("tiny"):
        raise error
    assert type(told.value) is ours
    assert "secret" not in str(told.value)
    assert error is told.value or told.value.__cause__ is None


def test_a_full_disk_is_no_damaged_file() -> None:
    with (
        pytest.raises(ModelError, match=r"No space left on device; make room on the disk of WORK_DIR"),
        loading("tiny"),
    ):
        raise OSError(errno.ENOSPC, "no")


def test_a_lost_gpu_is_told_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="CUDA error"), loading("tiny"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("kind", ["int8", "int8_float16"])
def test_arithmetic_that_these_models_have_not(kind: Any) -> None:
    with pytest.raises(SettingsError, match=f"COMPUTE_TYPE is {kind}, which Voxtral has not"):
        check_compute_type(Settings(compute_type=kind), "Voxtral")


@pytest.mark.parametrize(
    ("device", "native", "asked", "expected"),
    [
        ("cpu", True, None, ("cpu", torch.float32)),
        ("cpu", True, "bfloat16", ("cpu", torch.bfloat16)),
        ("cuda", True, None, ("cuda", torch.bfloat16)),
        ("cuda", False, None, ("cuda", torch.float16)),
        ("cuda", False, "bfloat16", ("cuda", torch.bfloat16)),
        ("cuda", True, "float32", ("cuda", torch.float32)),
    ],
)
def test_where_and_in_what_a_model_runs(
    device: Any, native: bool, asked: Any, expected: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert device_and_dtype(Settings(device=device, compute_type=asked), "Voxtral") == expected


def test_a_gpu_that_is_asked_for_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="none can be used"):
        device_and_dtype(Settings(device="cuda"), "Voxtral")

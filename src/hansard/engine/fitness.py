"""What keeps this machine from doing its work, found out in the engine process before it loads a model.

Asks no network. Not covered: whether a model that is whole by its manifest, or has none, can be loaded; only the
warm-up and the jobs tell that.
"""

from __future__ import annotations

import ctypes
import logging
import os
import tempfile
from collections.abc import Iterator

from hansard import manifest
from hansard.diarizers import DIARIZERS
from hansard.models import Models, shown
from hansard.plan import Choice, default_diarizer, default_transcriber
from hansard.settings import Settings
from hansard.transcribers import TRANSCRIBERS
from hansard.vendors import no_room, quiet

log = logging.getLogger(__name__)

CUBLAS = "libcublas.so.12"  # the one library of CUDA that CTranslate2 opens by its name; cuDNN is opened by torch
SIDE = 64  # of the matrices that the GPU has to multiply
TAPS = 3  # of the filter that it has to apply
PROBE = b"hansard\n" * (1 << 17)  # 1 MiB, so that a full disk shows
NEW_PACKAGES = "install requirements.txt anew, or build the image anew"


def problems(settings: Settings) -> tuple[str, ...]:
    """What is wrong and what to do about it, a sentence each, what matters most first; none: this machine is fit."""
    found: list[str] = []
    for what, check in (("the device", _device), ("the default models", _models), ("WORK_DIR", _work_dir)):
        try:
            found += check(settings)
        except Exception:  # whatever a broken driver or package raises: the parent waits for an answer
            log.exception("%s could not be checked", what)
            found.append(f"{what} could not be checked; the worker's log says why")
    return tuple(found)


def _device(settings: Settings) -> Iterator[str]:
    """Importing torch costs seconds, so without a GPU nobody does."""
    try:
        from ctranslate2 import get_cuda_device_count
    except (ImportError, OSError) as error:
        log.warning("CTranslate2 cannot be imported", exc_info=error)
        yield f"CTranslate2, which Whisper runs on, cannot be imported; {NEW_PACKAGES}"
        return
    if not settings.on_gpu:
        return
    try:
        seen = get_cuda_device_count()
    except RuntimeError as error:
        log.warning("CTranslate2 cannot ask for GPUs", exc_info=error)
        seen = 0
    if seen == 0:
        yield "models are to run on a GPU and CTranslate2 finds none; set DEVICE=cpu, or mend the driver"
        return
    try:
        yield from _computing()
    except (ImportError, OSError, RuntimeError, AssertionError) as error:
        log.warning("the GPU cannot be used", exc_info=error)
        if no_room(error):
            yield "the GPU has no memory left; end what else runs on it, or use another machine"
        else:
            yield "the GPU is there, but torch cannot compute on it; mend the driver, or use another machine"


def _computing() -> Iterator[str]:
    """Does torch get right results from cuBLAS and cuDNN? Raises whatever torch does."""
    with quiet():
        import torch
    try:
        ctypes.CDLL(CUBLAS)  # found because torch has loaded its own by now, as it has before Whisper needs it
    except OSError as error:
        log.warning("%s cannot be loaded", CUBLAS, exc_info=error)
        yield f"{CUBLAS}, which Whisper computes with, cannot be loaded; {NEW_PACKAGES}"
    if not torch.backends.cudnn.is_available():
        yield f"cuDNN, which torch computes with, cannot be loaded; {NEW_PACKAGES}"
        return
    product = torch.ones(SIDE, SIDE, device="cuda") @ torch.ones(SIDE, SIDE, device="cuda")
    sound, taps = torch.ones(1, SIDE, SIDE, device="cuda"), torch.ones(SIDE, SIDE, TAPS, device="cuda")
    filtered = torch.nn.functional.conv1d(sound, taps)
    torch.cuda.synchronize()  # an error of a kernel shows only when somebody waits for it
    if not (bool((product == SIDE).all()) and bool((filtered == SIDE * TAPS).all())):
        yield "the GPU computes wrong results; use another machine"


def _models(settings: Settings) -> Iterator[str]:
    """The default models: what is here must be whole, what is not must be fetchable where jobs cannot do without."""
    models = Models(settings)
    transcriber, diarizer = default_transcriber(models), default_diarizer(models)
    for name in _repositories(transcriber):
        yield from _damaged(name, models) or _out_of_reach(name, models)
    for name in DIARIZERS[diarizer.backend].needs(diarizer.model, models):
        yield from _damaged(name, models)
        for problem in _out_of_reach(name, models):
            if settings.diarization_required:
                yield problem
            else:
                log.warning("speakers cannot be told apart: %s", problem)


def _repositories(transcriber: Choice) -> tuple[str, ...]:
    """What must be found or fetched; nothing for a backend none of whose models has weights: they lie with a service.

    A model that its backend does not know by name is a folder or a repository itself.
    """
    known = TRANSCRIBERS[transcriber.backend].models
    return known.get(transcriber.model, (transcriber.model,)) if any(known.values()) else ()


def _damaged(name: str, models: Models) -> list[str]:
    folder = models.find(name)
    files = manifest.missing(folder) if folder else ()
    if not files:
        return []
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return [f"model {shown(name)} is damaged: {files[0]}{more} missing or of another size; fetch the model again"]


def _out_of_reach(name: str, models: Models) -> list[str]:
    if models.find(name) or not models.settings.hf_hub_offline:
        return []
    return [f"model {shown(name)} is not on this machine; bake it into the image, or set HF_HUB_OFFLINE=false"]


def _work_dir(settings: Settings) -> Iterator[str]:
    """A file of no name is gone with its last reader, even if that is killed."""
    try:
        with tempfile.TemporaryFile(dir=settings.work_dir) as file:
            file.write(PROBE)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            if file.read() != PROBE:
                yield "WORK_DIR gives back other bytes than were written; use another disk"
    except OSError as error:
        yield f"WORK_DIR cannot be used ({error.strerror}); make it a folder with room that the worker may write to"

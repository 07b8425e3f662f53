"""Which backends and models a job will use, decided at the door: before a byte is downloaded or a model is loaded.

`check` refuses what no backend can do, and weights that cannot be had. It asks the model hub at most a question or
two, loads nothing and touches no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hansard.allowance import memory
from hansard.diarizers import DIARIZERS
from hansard.errors import ModelError, ModelMissingError, RequestError, SettingsError, UnsupportedError
from hansard.models import Models, shown
from hansard.request import Request
from hansard.settings import Settings
from hansard.transcribers import TRANSCRIBERS
from hansard.transcribers.capabilities import OPTIONS, Can

STAGES = {"load": 0, "fetch": 5, "decode": 5, "transcribe": 45, "align": 10, "diarize": 30, "assign": 5}
"""The stages in order, each with its share of the progress in percent: a rough guess, engines and machines differ.

`load` is the download of a model that is not on this machine yet, or the wait for one that is being loaded; it may come
at any time, or never, so it has no share.
"""

ALIGNER = "ctc"

GPU_TRANSCRIBER = "large-v3"
GPU_DIARIZER = "pyannote/speaker-diarization-community-1"
CPU_TRANSCRIBER = "sphinx"
CPU_DIARIZER = "embedded"

STORED = {"whisper": 2, "voxtral": 2, "canary": 2}
"""Bytes of a weight in the files of a backend's models. Of the others they are loaded as they are."""

USED = {"float32": 4, "float16": 2, "bfloat16": 2}
"""The same in memory, by COMPUTE_TYPE; of Whisper's other arithmetics, which are int8's, 1."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend, by its name in its table, and the model it is to load."""

    backend: str
    model: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job will use. No diarizer: speakers are not told apart; no transcriber: there will be no text."""

    transcriber: Choice | None
    diarizer: Choice | None = None
    align: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def stages(self) -> dict[str, int]:
        """The part of STAGES that this job goes through."""
        skipped = {
            "transcribe": self.transcriber is None,
            "align": not self.align,
            "diarize": self.diarizer is None,
            "assign": self.diarizer is None,
        }
        return {stage: share for stage, share in STAGES.items() if not skipped.get(stage)}

    @property
    def model(self) -> str:
        """The model that an answer names: the transcriber's, or where there is none the diarizer's."""
        chosen = self.transcriber or self.diarizer
        return shown(chosen.model) if chosen else ""


def check(request: Request, settings: Settings) -> Plan:
    """Choose the backends; refuse what they cannot do and weights that they cannot have.

    Raises ModelMissingError for an unknown model, UnsupportedError naming every option that cannot be honoured,
    ModelError for weights out of reach, EngineMissingError for a package that is not installed. Without any token, a
    diarizer out of reach costs a job that asked for `diarization` only the speakers, and the plan's warnings say so,
    unless DIARIZATION_REQUIRED.
    """
    models = Models(settings, request.huggingface_access_token)
    transcriber = _transcriber_for(request, models)
    diarizer = _diarizer_for(request, models) if request.wants_speakers else None
    can = TRANSCRIBERS[transcriber.backend].can if transcriber else _NO_TEXT
    if problems := _cannot(transcriber.model if transcriber else None, can, request):
        raise UnsupportedError("; ".join(problems))
    if transcriber:
        TRANSCRIBERS[transcriber.backend].check(transcriber.model, request, models)
        refuse_too_large(transcriber, known_size(transcriber, models), settings)
    diarizer, warnings = _diarizer_in_reach(diarizer, request, models)
    wants_words = (
        request.align_output
        or (diarizer is not None and request.task == "transcribe")
        or (_captions(request) and not can.word_times)  # whose segments would be captions of half a minute
    )
    return Plan(transcriber, diarizer, align=wants_words and can.needs_alignment, warnings=warnings)


def refuse_too_large(choice: Choice, size: int | None, settings: Settings) -> None:
    """Refuse a model that only a GPU could hold on a machine without one; `size` is of its files, None: not known.

    Raises UnsupportedError.
    """
    if size is None or settings.on_gpu or fits_without_gpu(choice, size, settings):
        return
    needs, has = in_memory(choice.backend, size, settings) / 1e9, memory().total / 1e9
    raise UnsupportedError(
        f"model {shown(choice.model)} needs a GPU here: its weights take {needs:.1f} GB in memory, of which "
        f"{has:.1f} GB may be used; use a machine with a GPU, or a smaller model"
    )


def fits_without_gpu(choice: Choice, size: int, settings: Settings) -> bool:
    """Can this process hold a model whose files have this size in the memory that it may use?"""
    return in_memory(choice.backend, size, settings) <= memory().total


def in_memory(backend: str, size: int, settings: Settings) -> int:
    """Bytes that files of this size become in a CPU's memory: models are published in half precision."""
    if backend not in STORED:
        return size
    arithmetic = settings.compute_type or ("int8" if backend == "whisper" else "float32")
    return size * USED.get(arithmetic, 1) // STORED[backend]


def known_size(choice: Choice, models: Models) -> int | None:
    """Bytes of a transcriber's files, where that is known without asking anybody; none for a service's."""
    repositories = TRANSCRIBERS[choice.backend].models.get(choice.model, (choice.model,))
    sizes = [models.known_size(name) for name in repositories]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _captions(request: Request) -> bool:
    """Are subtitles of the words that are spoken wanted?"""
    return request.task != "translate" and bool({"srt", "vtt"} & set(request.output_formats))


def check_settings(settings: Settings) -> None:
    """Refuse defaults that no job could use. Raises SettingsError."""
    problems = []
    models = Models(settings)
    for variable, find in (("DEFAULT_MODEL", default_transcriber), ("DIARIZATION_MODEL", default_diarizer)):
        try:
            find(models)
        except RequestError as error:
            problems.append(f"{variable}: {error.sentence}")
    missing = [
        name for name in settings.align_models.values() if not models.is_repository(name) and not models.find(name)
    ]
    problems += [f"ALIGN_MODELS: {shown(name)!r} is no folder under MODELS_DIR with a model" for name in missing]
    if problems:
        raise SettingsError("; ".join(problems))


def default_transcriber(models: Models) -> Choice:
    """What transcribes a job that names no model. Raises RequestError."""
    settings = models.settings
    return transcriber_named(
        settings.default_model or (GPU_TRANSCRIBER if settings.on_gpu else CPU_TRANSCRIBER), models
    )


def default_diarizer(models: Models) -> Choice:
    """What tells speakers apart. Raises RequestError."""
    settings = models.settings
    return diarizer_named(settings.diarization_model or (GPU_DIARIZER if settings.on_gpu else CPU_DIARIZER), models)


def _transcriber_for(request: Request, models: Models) -> Choice | None:
    if request.task == "diarization":
        return None
    return _asked_for(transcriber_named, request.model, models) if request.model else default_transcriber(models)


def _diarizer_for(request: Request, models: Models) -> Choice:
    """A job may name a diarizer of the table; folders and other hub repositories are the operator's choice."""
    if request.task != "diarization" or request.model is None:
        return default_diarizer(models)
    if request.model in _names(DIARIZERS):
        return diarizer_named(request.model, models)
    known = ", ".join(_names(DIARIZERS))
    raise ModelMissingError(_no_diarizer(request.model, known))


def _asked_for(find: Callable[[str, Models], Choice], name: str, models: Models) -> Choice:
    """What a job names. Raises ModelMissingError where there is no such model: the same name is a mistake in a setting.

    Raises UnsupportedError where there is one, but not for this task.
    """
    try:
        return find(name, models)
    except UnsupportedError:
        raise
    except RequestError as error:
        raise ModelMissingError(error.sentence) from None


def transcriber_named(name: str, models: Models) -> Choice:
    """What transcribes by the model of this name; one on this machine goes before a service's. Raises RequestError."""
    if models.kind(name) and (local := _taker(name, models)):
        return Choice(local, name)
    for backend, cls in TRANSCRIBERS.items():
        if name in cls.models:
            return Choice(backend, name)
    if name in _names(DIARIZERS):
        raise UnsupportedError(f"model {name} is a diarizer; ask for task: diarization, or leave out model", "model")
    if taker := _taker(name, models):
        return Choice(taker, name)
    known = ", ".join([*_names(TRANSCRIBERS), *(folder for folder in models.names() if _taker(folder, models))])
    raise RequestError(
        f"model {name[:100]!r} is not known; known models: {known}, any CTranslate2 Whisper on "
        "the hub as owner/name, any voxtral- name behind VOXTRAL_ENDPOINT"
    )


def _taker(name: str, models: Models) -> str | None:
    """The backend that takes a name which none has in its table."""
    return next((backend for backend, cls in TRANSCRIBERS.items() if cls.takes(name, models)), None)


def diarizer_named(name: str, models: Models) -> Choice:
    """What tells speakers apart by the model of this name. Raises RequestError."""
    for backend, cls in DIARIZERS.items():
        if name in cls.models:
            return Choice(backend, name)
    if models.kind(name) == "pyannote" or (models.find(name) is None and models.is_repository(name)):
        return Choice("pyannote", name)
    raise RequestError(_no_diarizer(name, ", ".join([*_names(DIARIZERS), *models.names("pyannote")])))


def _no_diarizer(name: str, known: str) -> str:
    return f"model {name[:100]!r} is no known diarizer; known diarizers: {known}"


def _names(table: dict[str, type]) -> list[str]:
    return [name for backend in table.values() for name in backend.models]  # type: ignore[attr-defined]


def _diarizer_in_reach(
    choice: Choice | None, request: Request, models: Models
) -> tuple[Choice | None, tuple[str, ...]]:
    """The diarizer, or none and a warning where callers of the known workers expect to get their text all the same."""
    if choice is None:
        return None, ()
    try:
        for repository in DIARIZERS[choice.backend].needs(choice.model, models):
            models.check(repository)
    except ModelError as error:
        optional = request.diarization and request.task in ("transcribe", "translate")
        if models.has_token or models.settings.diarization_required or not optional:
            raise
        return None, (f"speakers were not told apart: {error.sentence}",)
    return choice, ()


_NO_TEXT = Can(languages=None, tasks=frozenset({"diarization"}))


def _cannot(name: str | None, can: Can, request: Request) -> list[str]:
    """What this transcriber cannot do of what the request asks; values equal to the default ask for nothing."""
    who = f"model {name}" if name else "task diarization"
    problems = []
    if name and _TASKS[request.task] not in can.tasks:
        problems.append(f"{who} does not offer task {request.task}; it offers: {', '.join(sorted(can.tasks))}")
    if request.language and name is None:
        problems.append(f"{who} hears no words; leave out language")
    elif request.language is None and can.needs_language:
        problems.append(f"{who} cannot detect the language; name it in language")
    elif request.language == "multi":
        if not can.mixed_languages:
            problems.append(f"{who} does not take language multi; name one language or leave it out")
    elif request.language and can.languages is not None and request.language not in can.languages:
        known = ", ".join(sorted(can.languages))
        problems.append(f"{who} does not know language {request.language}; it knows: {known}")
    if request.align_output and not (can.word_times or can.needs_alignment):
        problems.append(f"{who} gives no word times; leave out align_output")
    for option in sorted(OPTIONS - can.options):
        if getattr(request, option) not in (Request.model_fields[option].default, can.always.get(option)):
            problems.append(f"{who} does not take {option}")
    return problems


_TASKS = {"transcribe": "transcribe", "translate": "translate", "transcription": "transcribe"}
"""What a task asks of a transcriber."""

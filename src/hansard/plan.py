"""Which backends and models a job will use, decided at the door: before a byte is downloaded or a model is loaded.

`check` refuses what no backend can do, and weights that cannot be had. It asks the model hub at most a question or
two, loads nothing and touches no GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hansard.diarizers import DIARIZERS
from hansard.errors import ModelError, RequestError, SettingsError, UnsupportedError
from hansard.models import Models
from hansard.request import Request
from hansard.settings import Settings
from hansard.transcribers import TRANSCRIBERS
from hansard.transcribers.capabilities import OPTIONS, Can

STAGES = {"download": 0, "fetch": 5, "decode": 5, "transcribe": 45, "align": 10, "diarize": 30, "assign": 5}
"""The stages in order, each with its share of the progress in percent: a rough guess, engines and machines differ.

`download` is of a model that is not on this machine yet; it may come at any time, or never, so it has no share.
"""

ALIGNER = "ctc"

GPU_TRANSCRIBER = "large-v3"
GPU_DIARIZER = "pyannote/speaker-diarization-community-1"
CPU_TRANSCRIBER = "sphinx"
CPU_DIARIZER = "embedded"

NOT_YET = frozenset({"voxtral-small-latest", "voxtral-mini-latest"})
"""Models that callers of known workers name and no backend here offers so far."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


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
        return chosen.model if chosen else ""


def check(request: Request, settings: Settings) -> Plan:
    """Choose the backends; refuse what they cannot do and weights that they cannot have.

    Raises RequestError for an unknown model, UnsupportedError naming every option that cannot be honoured, ModelError
    for weights out of reach. Without any token, a diarizer out of reach costs a job that asked for `diarization` only
    the speakers, and the plan's warnings say so, unless DIARIZATION_REQUIRED.
    """
    models = Models(settings, request.huggingface_access_token)
    transcriber = _transcriber_for(request, models)
    diarizer = _diarizer_for(request, models) if request.wants_speakers else None
    can = TRANSCRIBERS[transcriber.backend].can if transcriber else _NO_TEXT
    if problems := _cannot(transcriber.model if transcriber else None, can, request):
        raise UnsupportedError("; ".join(problems))
    if transcriber:
        _reach(TRANSCRIBERS[transcriber.backend].models, transcriber, models)
    diarizer, warnings = _diarizer_in_reach(diarizer, request, models)
    wants_words = request.align_output or (diarizer is not None and request.task == "transcribe")
    return Plan(transcriber, diarizer, align=wants_words and can.needs_alignment, warnings=warnings)


def check_settings(settings: Settings) -> None:
    """Refuse defaults that no job could use. Raises SettingsError."""
    problems = []
    models = Models(settings)
    for variable, find in (("DEFAULT_MODEL", default_transcriber), ("DIARIZATION_MODEL", default_diarizer)):
        try:
            find(models)
        except RequestError as error:
            problems.append(f"{variable}: {error.sentence}")
    if problems:
        raise SettingsError("; ".join(problems))


def default_transcriber(models: Models) -> Choice:
    """What transcribes a job that names no model. Raises RequestError."""
    settings = models.settings
    return _transcriber(settings.default_model or (GPU_TRANSCRIBER if settings.on_gpu else CPU_TRANSCRIBER), models)


def default_diarizer(models: Models) -> Choice:
    """What tells speakers apart. Raises RequestError."""
    settings = models.settings
    return _diarizer(settings.diarization_model or (GPU_DIARIZER if settings.on_gpu else CPU_DIARIZER), models)


def _transcriber_for(request: Request, models: Models) -> Choice | None:
    if request.task == "diarization":
        return None
    return _transcriber(request.model, models) if request.model else default_transcriber(models)


def _diarizer_for(request: Request, models: Models) -> Choice:
    """A job may name a diarizer of the table; folders and other hub repositories are the operator's choice."""
    if request.task != "diarization" or request.model is None:
        return default_diarizer(models)
    if request.model in _names(DIARIZERS):
        return _diarizer(request.model, models)
    known = ", ".join(_names(DIARIZERS))
    raise RequestError(f"model {request.model[:100]!r} is no known diarizer; known diarizers: {known}")


def _transcriber(name: str, models: Models) -> Choice:
    for backend, cls in TRANSCRIBERS.items():
        if name in cls.models:
            return Choice(backend, name)
    if name in _names(DIARIZERS):
        raise RequestError(f"model {name} is a diarizer; ask for task: diarization, or leave out model")
    if name in NOT_YET:
        raise UnsupportedError(f"model {name} is not offered by this worker yet; leave out model or name another")
    if models.kind(name) == "whisper" or (models.find(name) is None and _HUB_ID.fullmatch(name)):
        return Choice("whisper", name)
    known = ", ".join([*_names(TRANSCRIBERS), *models.names("whisper")])
    raise RequestError(
        f"model {name[:100]!r} is not known; known models: {known}, any CTranslate2 Whisper on the hub as owner/name"
    )


def _diarizer(name: str, models: Models) -> Choice:
    for backend, cls in DIARIZERS.items():
        if name in cls.models:
            return Choice(backend, name)
    if models.kind(name) == "pyannote" or (models.find(name) is None and _HUB_ID.fullmatch(name)):
        return Choice("pyannote", name)
    known = ", ".join([*_names(DIARIZERS), *models.names("pyannote")])
    raise RequestError(f"model {name[:100]!r} is no known diarizer; known diarizers: {known}")


def _names(table: dict[str, type]) -> list[str]:
    return [name for backend in table.values() for name in backend.models]  # type: ignore[attr-defined]


def _reach(known: Mapping[str, tuple[str, ...]], choice: Choice, models: Models) -> None:
    """Return when every weight of this choice is here or may be downloaded. Raises ModelError."""
    for repository in known.get(choice.model, (choice.model,)):
        models.check(repository)


def _diarizer_in_reach(
    choice: Choice | None, request: Request, models: Models
) -> tuple[Choice | None, tuple[str, ...]]:
    """The diarizer, or none and a warning where callers of the known workers expect to get their text all the same."""
    if choice is None:
        return None, ()
    try:
        _reach(DIARIZERS[choice.backend].models, choice, models)
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
    elif request.language == "multi":
        if not can.mixed_languages:
            problems.append(f"{who} does not take language multi; name one language or leave it out")
    elif request.language and can.languages is not None and request.language not in can.languages:
        known = ", ".join(sorted(can.languages))
        problems.append(f"{who} does not know language {request.language}; it knows: {known}")
    if request.align_output and not can.word_times:
        problems.append(f"{who} gives no word times; leave out align_output")
    for option in sorted(OPTIONS - can.options):
        if getattr(request, option) not in (Request.model_fields[option].default, can.always.get(option)):
            problems.append(f"{who} does not take {option}")
    return problems


_TASKS = {"transcribe": "transcribe", "translate": "translate", "transcription": "transcribe"}
"""What a task asks of a transcriber."""

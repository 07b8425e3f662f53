"""What the fields of OpenAI's endpoints ask of a job, and what is refused; form text becomes values by its schema."""

import json
from pathlib import Path
from typing import Any

import pytest

from hansard.errors import RequestError, UnsupportedError
from hansard.server.multipart import Upload
from hansard.server.openai import form as openai_form
from hansard.server.openai.form import DIARIZATION, TRANSCRIPTION, TRANSLATION, Ask, Endpoint
from hansard.server.openai.models import DIARIZING
from hansard.settings import Settings

SOUND = Upload(Path("sound"), "a.wav", 3, "0" * 64)
REFERENCE = "data:audio/wav;base64,UklGRg=="


def read(
    endpoint: Endpoint = TRANSCRIPTION, upload: Upload | None = SOUND, settings: Settings | None = None, **given: Any
) -> Ask:
    """What values ask for."""
    return openai_form.read(given, upload, endpoint, settings or Settings())


def form(*pairs: tuple[str, str], endpoint: Endpoint = TRANSCRIPTION) -> Ask:
    """What the fields of a form ask for."""
    fields: dict[str, list[str]] = {}
    for name, text in pairs:
        fields.setdefault(name, []).append(text)
    return openai_form.read(openai_form.values(fields, endpoint), SOUND, endpoint, Settings())


def test_nothing_but_a_file_is_the_default_job() -> None:
    ask = form()
    assert ask.request.task == "transcribe"
    assert ask.request.model is None
    assert (ask.format, ask.stream, ask.segments, ask.words) == ("json", False, True, False)


def test_every_field_of_openai_reaches_the_job() -> None:
    ask = form(
        ("model", "large-v3"),
        ("language", "de"),
        ("languages[]", "de"),
        ("prompt", "a meeting"),
        ("keywords[]", "Hansard"),
        ("keywords[]", "Westminster"),
        ("temperature", "0.25"),
        ("chunking_strategy[type]", "server_vad"),
        ("chunking_strategy[threshold]", "0.75"),
        ("known_speaker_names[]", "ann"),
        ("known_speaker_names[]", "bob"),
        ("known_speaker_references[]", REFERENCE),
        ("known_speaker_references[]", REFERENCE + "AA"),
        ("response_format", "verbose_json"),
        ("timestamp_granularities[]", "word"),
        ("timestamp_granularities[]", "segment"),
    )
    request = ask.request
    assert (request.model, request.language, request.prompt) == ("large-v3", "de", "a meeting")
    assert request.hotwords == "Hansard, Westminster"
    assert (request.temperature, request.vad_onset) == (0.25, 0.75)
    assert request.diarization
    assert request.speaker_verification
    assert [(s.name, s.audio) for s in request.speaker_samples] == [("ann", REFERENCE), ("bob", REFERENCE + "AA")]
    assert request.align_output
    assert (ask.segments, ask.words) == (True, True)


@pytest.mark.parametrize("name", ["timestamp_granularities", "timestamp_granularities[]"])
def test_lists_with_and_without_brackets(name: str) -> None:
    ask = form(("response_format", "verbose_json"), (name, "word"))
    assert (ask.segments, ask.words) == (False, True)


@pytest.mark.parametrize(
    ("text", "segments"),
    [('["word", "segment"]', True), ("word", False), ("word,segment", True), (" word , segment,", True)],
)
def test_a_list_may_be_one_text(text: str, segments: bool) -> None:
    ask = form(("response_format", "verbose_json"), ("timestamp_granularities", text))
    assert (ask.words, ask.segments) == (True, segments)


def test_lists_of_words_that_are_not_told_beforehand_may_have_commas() -> None:
    request = form(("known_speaker_names", "Lee, Ann"), ("known_speaker_references", REFERENCE)).request
    assert [sample.name for sample in request.speaker_samples] == ["Lee, Ann"]


def test_lists_as_php_writes_them() -> None:
    ask = form(
        ("response_format", "verbose_json"),
        ("timestamp_granularities[0]", "word"),
        ("timestamp_granularities[1]", "segment"),
        *((f"known_speaker_names[{place}]", f"v{place}") for place in (10, 2, 0)),
        *((f"known_speaker_references[{place}]", f"{REFERENCE}{place}") for place in (0, 2, 10)),
    )
    assert (ask.words, ask.segments) == (True, True)
    told = [(sample.name, sample.audio) for sample in ask.request.speaker_samples]
    assert told == [(f"v{place}", f"{REFERENCE}{place}") for place in (0, 2, 10)]


@pytest.mark.parametrize("text", ["true", "True", "TRUE", " yes ", "on", "1"])
def test_what_is_true(text: str) -> None:
    assert form(("diarization", text)).request.diarization


@pytest.mark.parametrize("text", ["false", "False", " no ", "off", "0"])
def test_what_is_false(text: str) -> None:
    assert not form(("diarization", text)).request.diarization


@pytest.mark.parametrize(
    "given",
    [
        [("chunking_strategy", "auto")],
        [("chunking_strategy", '{"type": "server_vad"}')],
        [("chunking_strategy[type]", "server_vad")],
    ],
)
def test_chunking_that_asks_for_nothing(given: list[tuple[str, str]]) -> None:
    assert form(*given).request == form().request


def test_chunking_as_json_text_sets_the_threshold() -> None:
    assert form(("chunking_strategy", '{"type": "server_vad", "threshold": 0.25}')).request.vad_onset == 0.25


def test_hints_that_no_engine_follows_cost_a_warning() -> None:
    ask = read(
        chunking_strategy={"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 200}
    )
    assert ask.request.vad_onset == 0.5
    assert ask.warnings == (
        "prefix_padding_ms and silence_duration_ms of chunking_strategy cannot be set here and changed nothing",
    )
    ask = read(languages=["de", "en", "fr"])
    assert ask.request.language is None
    assert ask.warnings == ("the language was detected among all, not only among the languages de, en and fr",)
    assert read(chunking_strategy={"type": "server_vad"}, languages=["de"]).warnings == ()
    assert read(languages=["de", "en"], language="en").warnings == ()
    assert read(languages=["de", "en"], language="en").request.language == "en"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("english", "en"),
        (" German ", "de"),
        ("cantonese", "yue"),
        ("zh_CN", "zh"),
        ("en-US", "en"),
        ("auto", None),
        (" AUTO", None),
        ("multi", "multi"),
    ],
)
def test_languages_by_other_names(given: str, code: str | None) -> None:
    assert form(("language", given)).request.language == code
    assert form(("languages[]", given)).request.language == code
    assert read(DIARIZATION, language="auto").request.language is None


def test_a_language_to_write_by_its_name() -> None:
    assert read(TRANSLATION, target_language="french").request.target_language == "fr"
    with pytest.raises(RequestError, match="target_language"):
        read(TRANSLATION, target_language="auto")


def test_own_fields_take_their_types_from_text() -> None:
    request = form(
        ("num_speakers", "2"),
        ("diarize", "true"),
        ("align_output", "false"),
        ("vad_onset", "0.625"),
        ("output_formats[]", "srt"),
        ("output_formats[]", "rttm"),
        ("hf_token", "123"),
        ("prompt", "[7]"),
        ("debug", "1"),
    ).request
    assert (request.num_speakers, request.diarization, request.align_output) == (2, True, False)
    assert request.vad_onset == 0.625
    assert request.output_formats == ["srt", "rttm"]
    assert request.secrets() == ("123",)
    assert request.prompt == "[7]"
    assert request.debug


@pytest.mark.parametrize(
    "given",
    [
        [("segments", json.dumps([{"start": 0, "end": 1.5, "speaker": "x"}, {"start": 2, "end": 3, "speaker": "y"}]))],
        [
            *[("segments[][start]", "0"), ("segments[][end]", "1.5"), ("segments[][speaker]", "x")],
            *[("segments[][start]", "2"), ("segments[][end]", "3"), ("segments[][speaker]", "y")],
        ],
    ],
)
def test_lists_of_objects(given: list[tuple[str, str]]) -> None:
    request = form(("task", "transcription"), *given).request
    assert request.segments is not None
    assert [(s.start, s.end, s.speaker) for s in request.segments] == [(0, 1.5, "x"), (2, 3, "y")]


def test_empty_fields_of_a_web_form_say_nothing() -> None:
    assert form(("language", ""), ("prompt", ""), ("num_speakers", ""), ("stream", "")) == form()


def test_json_gives_values_and_a_url() -> None:
    ask = read(upload=None, audio_url="https://example.com/a.mp3", num_speakers=2, diarization=True, language=None)
    assert ask.request.audio == "https://example.com/a.mp3"
    assert ask.request.num_speakers == 2


@pytest.mark.parametrize(
    ("name", "model"),
    [("whisper-1", None), ("gpt-4o-mini-transcribe", None), ("turbo", "turbo"), ("mine", "large-v2"), ("any", None)],
)
def test_names_of_models(name: str, model: str | None) -> None:
    settings = Settings(model_aliases={"mine": "large-v2", "any": ""})
    ask = read(settings=settings, model=name)
    assert ask.request.model == model
    assert not ask.request.diarization


@pytest.mark.parametrize(
    ("aliases", "name", "model"),
    [
        ({"mine": "whisper-1"}, "mine", None),
        ({"mine": "whisper-1", "whisper-1": "turbo"}, "mine", "turbo"),
        ({"mine": "whisper-1", "whisper-1": ""}, "mine", None),
        ({"turbo": "large-v3", "large-v3": "turbo"}, "turbo", "large-v3"),
        ({"turbo": "turbo"}, "turbo", "turbo"),
    ],
)
def test_an_alias_of_an_alias(aliases: dict[str, str], name: str, model: str | None) -> None:
    assert read(settings=Settings(model_aliases=aliases), model=name).request.model == model


@pytest.mark.parametrize("aliases", [{}, {DIARIZING: "turbo"}, {DIARIZING: ""}])
@pytest.mark.parametrize("name", [DIARIZING, "mine"])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_the_diarizing_model_tells_speakers_apart_by_any_name(aliases: dict[str, str], name: str, task: str) -> None:
    settings = Settings(model_aliases={**aliases, "mine": DIARIZING})
    request = read(settings=settings, model=name, task=task).request
    assert (request.model, request.diarization) == (aliases.get(DIARIZING) or None, True)
    assert not read(settings=settings, model=name, channels="separate").request.diarization


def test_an_alias_of_the_operator_goes_first_and_still_tells_speakers_apart() -> None:
    settings = Settings(model_aliases={"gpt-4o-transcribe-diarize": "turbo"})
    request = read(settings=settings, model="gpt-4o-transcribe-diarize").request
    assert (request.model, request.diarization) == ("turbo", True)


def test_diarized_json_tells_speakers_apart_unless_something_else_does() -> None:
    assert read(response_format="diarized_json").request.diarization
    assert not read(response_format="diarized_json", channels="separate").request.diarization


def test_known_speakers_may_be_more_than_openai_takes() -> None:
    names = [f"voice {number}" for number in range(9)]
    request = read(known_speaker_names=names, known_speaker_references=[REFERENCE] * 9).request
    assert [sample.name for sample in request.speaker_samples] == names
    assert request.diarization


def test_known_speakers_are_not_looked_for_in_channels() -> None:
    known = {"known_speaker_names": ["a"], "known_speaker_references": [REFERENCE]}
    with pytest.raises(RequestError, match="leave out channels: separate"):
        read(channels="separate", **known)


@pytest.mark.parametrize("answer", ["srt", "vtt"])
def test_captions_are_asked_of_the_job(answer: str) -> None:
    assert read(response_format=answer).request.output_formats == [answer]


def test_the_tasks_of_the_endpoints() -> None:
    assert read(TRANSLATION).request.task == "translate"
    assert read(DIARIZATION, response_format="rttm", num_speakers=2).request.output_formats == ["rttm"]
    assert read(DIARIZATION, model="whisper-1").request.model is None


REFUSED = [
    ({"responce_format": "json"}, "responce_format is not a field here; did you mean response_format?"),
    ({"num_speaker": 2}, "did you mean num_speakers?"),
    ({"no_speech_threshold": 0.5}, "NO_SPEECH_THRESHOLD"),
    ({"response_format": "xml"}, "response_format: "),
    ({"temperature": 2.0}, "temperature: "),
    ({"temperature": "warm"}, "temperature: "),
    ({"include": ["logprobs"]}, "logprobs"),
    ({"include": ["tokens"]}, "include.0: "),
    ({"languages": ["de", "en"], "language": "fr"}, "languages and language"),
    ({"languages": ["de", "english language"]}, "languages.1: "),
    ({"languages": ["de"], "language": "en"}, "languages and language"),
    ({"keywords": ["a"], "hotwords": "b"}, "keywords and hotwords say the same"),
    ({"chunking_strategy": "never"}, "chunking_strategy"),
    ({"chunking_strategy": {"type": "server_vad", "silence_duration_ms": "long"}}, "silence_duration_ms"),
    ({"chunking_strategy": {"type": "server_vad", "threshold": 0.5}, "vad_onset": 0.4}, "vad_onset say the same"),
    ({"known_speaker_names": ["a"]}, "they are 1 and 0"),
    ({"known_speaker_references": [REFERENCE]}, "they are 0 and 1"),
    ({"timestamp_granularities": ["word"]}, "timestamp_granularities need response_format verbose_json"),
    ({"timestamp_granularities": ["line"], "response_format": "verbose_json"}, "timestamp_granularities.0: "),
    ({"stream": True, "response_format": "srt"}, "cannot be streamed"),
    ({"stream": True, "response_format": "verbose_json"}, "cannot be streamed"),
    ({"response_format": "diarized_json", "diarize": False}, "leave out diarize: false"),
    ({"response_format": "text", "align_output": True}, "align_output has no place"),
    ({"response_format": "srt", "output_formats": ["vtt"]}, "output_formats has no place"),
    ({"response_format": "vtt", "debug": True}, "debug has no place"),
    ({"audio_url": "https://example.com/a.mp3"}, "as a file and as audio_url"),
    ({"task": "diarization"}, "task: this endpoint takes"),
]


@pytest.mark.parametrize(("given", "sentence"), REFUSED, ids=[" ".join(given) for given, _ in REFUSED])
def test_what_cannot_be_is_refused_by_name(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as refused:
        read(**given)
    assert sentence in refused.value.sentence


def test_what_openai_has_and_no_engine_is_unsupported() -> None:
    with pytest.raises(UnsupportedError):
        read(include=["logprobs"])


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"responce_format": "json"}, None),
        ({"responce_format": "json", "response_format": "xml"}, "response_format"),
        ({"response_format": "xml"}, "response_format"),
        ({"include": ["tokens"]}, "include"),
        ({"include": ["logprobs"]}, "include"),
        ({"keywords": ["a"], "hotwords": "b"}, "hotwords"),
        ({"known_speaker_names": ["a"]}, "known_speaker_references"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities"),
        ({"stream": True, "response_format": "srt"}, "stream"),
        ({"response_format": "diarized_json", "diarize": False}, "diarize"),
        ({"response_format": "vtt", "debug": True}, "debug"),
        ({"audio_url": "https://example.com/a.mp3"}, "audio_url"),
        ({"task": "diarization"}, "task"),
        ({"upload": None}, "file"),
        ({"upload": None, "file": "text"}, "file"),
    ],
)
def test_a_refusal_names_its_field(given: dict[str, Any], field: str | None) -> None:
    with pytest.raises(RequestError) as refused:
        read(**given)
    assert refused.value.param == field


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(RequestError) as refused:
        read(responce_format="json", response_format="xml")
    assert "responce_format" in refused.value.sentence
    assert "response_format: " in refused.value.sentence


@pytest.mark.parametrize("endpoint", [TRANSLATION, DIARIZATION])
def test_fields_of_another_endpoint_are_refused(endpoint: Endpoint) -> None:
    with pytest.raises(RequestError, match="stream is not a field here"):
        read(endpoint, stream=True)


def test_no_recording() -> None:
    with pytest.raises(RequestError, match="recording is missing"):
        read(upload=None)
    with pytest.raises(RequestError, match="it came as text"):
        read(upload=None, file="a.wav")


@pytest.mark.parametrize(
    "pairs",
    [
        [("language", "de"), ("language", "en")],
        [("segments[][start]", "0"), ("segments[][start]", "1"), ("segments[][end]", "2")],
        [("chunking_strategy", "auto"), ("chunking_strategy[type]", "server_vad")],
        [("chunking_strategy[type]", "server_vad"), ("chunking_strategy[type]", "server_vad")],
    ],
)
def test_a_form_that_says_two_things(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(RequestError, match=r"give it once|one JSON text"):
        form(*pairs)


@pytest.mark.parametrize("text", ["two", "9" * 5000, "[" * 100_000, "nan", '["\\ud800"]'])
def test_text_that_is_no_value_is_refused_as_the_field(text: str) -> None:
    for name in ("num_speakers", "vad_onset", "segments", "diarization"):
        with pytest.raises(RequestError, match=name):
            form((name, text))

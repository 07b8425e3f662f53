"""Whisper on a small real model: what is heard, in which language, and what the guard does about faults."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile

from hansard.audio.speech import Activity
from hansard.batch import Batch
from hansard.errors import CancelledError, ModelError, OutOfMemoryError, SettingsError, UnsupportedError
from hansard.request import Request, parse
from hansard.settings import Settings
from hansard.transcribers.guard import loops
from hansard.transcribers.whisper import LANGUAGES, Whisper
from hansard.transcribers.whisper_model import FRAME_S, Decoded, Encoded, Manner
from hansard.transcript import SAMPLE_RATE, Audio, Segment, Span, Transcription
from places import ROOT

TINY = ROOT / "tests/models/tiny-synthetic"
MODEL = "whisper-tiny-synthetic-ct2"
EN2, EN3, EN_FR, FR, RU = "meeting_en_2voices", "meeting_en_3voices", "meeting_en_fr", "meeting_fr", "meeting_ru"

pytestmark = pytest.mark.timeout(300)


class Folder:
    """Where the weights are: one folder, whatever the name."""

    def __init__(self, folder: Path = TINY / MODEL, **settings: Any) -> None:
        self.settings = Settings(device="cpu", **settings)
        self.folder, self.asked = folder, ""

    def get(self, name: str) -> Path:
        self.asked = name
        return self.folder


def load(folder: Path = TINY / MODEL, **settings: Any) -> Whisper:
    return Whisper(MODEL, Folder(folder, **settings))  # type: ignore[arg-type]


class Remembering:
    """CTranslate2's model, which encodes the same sounds only once: most tests are about what is made of them."""

    def __init__(self, model: Any) -> None:
        self._model, self._encoded = model, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, features: Any) -> Any:
        key = np.asarray(features).tobytes()
        if key not in self._encoded:
            self._encoded[key] = self._model.encode(features)
        return self._encoded[key]


def remembering(backend: Whisper) -> Whisper:
    backend._weights._model = Remembering(backend._weights._model)
    return backend


@pytest.fixture(scope="module")
def whisper() -> Iterator[Whisper]:
    """With the faster model of voice activity, since most tests are not about that."""
    backend = remembering(load(vad_method="silero"))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def default_whisper() -> Iterator[Whisper]:
    backend = load()
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def usual(whisper: Whisper) -> Callable[[str], Transcription]:
    """What the model makes of a clip when a job asks for nothing in particular."""
    return functools.cache(lambda name: whisper.transcribe(recording(name), ask(), ignore))


def recording(name: str) -> Audio:
    samples, _ = soundfile.read(TINY / f"clips/{name}.flac", dtype="int16")
    return Audio(samples[None])


def turns(name: str) -> list[dict[str, Any]]:
    return json.loads((TINY / f"clips/{name}.json").read_text())["turns"]


def ask(**fields: Any) -> Request:
    return parse({"audio": "data:,", **fields})


def ignore(_: float) -> None:
    """A report that nobody listens to."""


def plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split())


def said(heard: Transcription) -> str:
    return plain(" ".join(segment.text for segment in heard.segments))


def error_rate(name: str, heard: Transcription) -> float:
    return float(jiwer.wer(plain(" ".join(turn["text"] for turn in turns(name))), said(heard)))


def part(audio: Audio, start: float, end: float) -> Audio:
    return Audio(audio.samples[:, round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)])


# Names


def test_every_name_of_faster_whisper_is_known_with_its_repository() -> None:
    from faster_whisper.utils import _MODELS

    known = {name: repositories[0] for name, repositories in Whisper.models.items()}
    assert known == {**_MODELS, "faster-whisper-large-v3-russian": "bzikst/faster-whisper-large-v3-russian"}


def test_languages_are_those_of_whisper() -> None:
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    assert frozenset(_LANGUAGE_CODES) == LANGUAGES == Whisper.can.languages


@pytest.mark.parametrize(("name", "asked"), [("large-v3", "Systran/faster-whisper-large-v3"), ("mine", "mine")])
def test_a_known_name_is_looked_up_by_its_repository_and_another_as_it_is(name: str, asked: str) -> None:
    models = Folder(vad_method="silero")
    Whisper(name, models).close()  # type: ignore[arg-type]
    assert models.asked == asked


# What is heard


@pytest.mark.parametrize(
    ("name", "language", "most"),
    [(EN2, "en", 0.05), (EN3, "en", 0.07), (EN_FR, "en", 0.05), (FR, "fr", 0.03), (RU, "ru", 0.1)],
)
def test_says_what_was_said_in_the_language_spoken(
    default_whisper: Whisper, name: str, language: str, most: float
) -> None:
    """The model itself makes 3-9 % errors on these clips with faster-whisper's batched decoding."""
    heard = default_whisper.transcribe(recording(name), ask(), ignore)
    assert error_rate(name, heard) <= most
    assert heard.language == language
    assert heard.language_probability is not None
    assert 0.9 < heard.language_probability <= 1
    assert heard.warnings == ()


def test_phrases_are_where_they_were_said(usual: Callable[[str], Transcription]) -> None:
    heard = usual(EN2).segments
    for before, after in pairwise(heard):
        assert before.start < before.end <= after.start + 0.1
    errors = [min(abs(segment.start - turn["start"]) for segment in heard) for turn in turns(EN2)]
    assert np.median(errors) < 0.1
    assert len(heard) == len(turns(EN2))


def test_silero_finds_the_speech_as_well(usual: Callable[[str], Transcription]) -> None:
    assert error_rate(EN2, usual(EN2)) <= 0.05


def test_silence_and_noise_give_no_words(default_whisper: Whisper) -> None:
    for audio in (recording("silence_noise"), Audio(np.zeros((1, 0), np.int16))):
        heard = default_whisper.transcribe(audio, ask(), ignore)
        assert heard.segments == ()
        assert heard.warnings == ("no speech was found, so no language could be detected",)


def test_noise_taken_for_speech_gives_no_words(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model says that nobody speaks: nothing is told of it where a second was taken for speech, else a gap is."""
    noise = part(recording("silence_noise"), 0, 9)
    for activity, told in ((briefly, 0), (everywhere, 1)):
        monkeypatch.setattr(whisper, "_voice_activity", activity)
        heard = whisper.transcribe(noise, ask(language="en"), ignore)
        assert heard.segments == ()
        assert [warning.startswith("somebody speaks") for warning in heard.warnings] == [True] * told


def everywhere(audio: Audio, report: Callable[[float], None]) -> Activity:
    """A voice activity model that hears speech everywhere."""
    report(1.0)
    return Activity(np.full(round(audio.duration * 100), 0.9, np.float32), 0.01)


def briefly(audio: Audio, report: Callable[[float], None]) -> Activity:
    """One that hears it in the first second."""
    heard = everywhere(audio, report)
    heard.probability[100:] = 0
    return heard


def test_an_earlier_job_changes_nothing(whisper: Whisper) -> None:
    first = whisper.transcribe(recording(FR), ask(), ignore)
    whisper.transcribe(
        part(recording(RU), 0, 5), ask(language="en", prompt="Anna", beam_size=1, temperature=0.5), ignore
    )
    assert whisper.transcribe(recording(FR), ask(), ignore) == first


def test_reports_progress_and_stops_when_told(whisper: Whisper) -> None:
    seen: list[float] = []
    whisper.transcribe(recording(EN2), ask(batch_size=1), seen.append)
    assert seen == sorted(seen)
    assert len(seen) > 4
    assert seen[-1] == 1.0

    def stop(fraction: float) -> None:
        if fraction > 0.2:
            raise CancelledError("enough")

    with pytest.raises(CancelledError):
        whisper.transcribe(recording(EN2), ask(batch_size=1), stop)


# Language


def test_the_whole_recording_votes_on_the_language(whisper: Whisper) -> None:
    """Thirty seconds of French, then a minute of English: the first chunk alone would say French."""
    french, english = recording(FR), recording(EN2)
    audio = Audio(np.concatenate([french.samples, english.samples], axis=1))
    one = whisper.transcribe(audio, ask(language_detection_max_tries=1), ignore)
    heard = whisper.transcribe(audio, ask(), ignore)
    assert heard.language == "en"
    assert heard.language_probability is not None
    assert heard.language_probability < 0.9
    assert one.language_probability is not None
    assert one.language_probability > 0.95


def test_a_doubtful_language_is_told_of(whisper: Whisper) -> None:
    heard = whisper.transcribe(recording(FR), ask(language_detection_min_prob=1.0), ignore)
    [warning] = heard.warnings
    assert "taken for fr with probability" in warning
    assert not whisper.transcribe(recording(FR), ask(language_detection_min_prob=0.9), ignore).warnings


def test_a_language_named_is_not_detected(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whisper._weights, "languages", lambda _: pytest.fail("asked for the language"))
    heard = whisper.transcribe(recording(FR), ask(language="fr"), ignore)
    assert (heard.language, heard.language_probability) == ("fr", None)
    assert all(segment.language is None for segment in heard.segments)


def test_multi_decides_the_language_of_each_segment(whisper: Whisper) -> None:
    heard = whisper.transcribe(recording(EN_FR), ask(language="multi"), ignore)
    assert error_rate(EN_FR, heard) <= 0.05
    for turn in turns(EN_FR):
        middle = (turn["start"] + turn["end"]) / 2
        [segment] = [s for s in heard.segments if s.start <= middle <= s.end]
        assert segment.language == turn["language"]
    assert heard.language == "en"  # spoken for 18 of 31 seconds


def test_a_model_without_a_list_of_languages_wants_the_language_named(tmp_path: Path) -> None:
    folder = tmp_path / "unlisted"
    shutil.copytree(TINY / MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "lang_ids": []}))
    whisper = load(folder, vad_method="silero")
    with pytest.raises(UnsupportedError, match="name it in language"):
        whisper.transcribe(recording(FR), ask(), ignore)
    assert error_rate(FR, whisper.transcribe(recording(FR), ask(language="fr"), ignore)) <= 0.05
    whisper.close()


def test_a_language_the_model_has_no_token_for_is_refused(whisper: Whisper) -> None:
    with pytest.raises(UnsupportedError, match="yue"):
        whisper.transcribe(recording(FR), ask(language="yue"), ignore)


@pytest.mark.parametrize("fields", [{"language": "fr"}, {"language": "multi"}, {"task": "translate"}])
def test_an_english_model_refuses_other_languages(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str]
) -> None:
    monkeypatch.setattr(whisper._weights, "multilingual", False)
    with pytest.raises(UnsupportedError, match="English only"):
        whisper.transcribe(recording(FR), ask(**fields), ignore)


# Options of a request


def prompts_seen(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each call of CTranslate2's `generate` is given, from now on."""
    model, calls = whisper._weights._model, []

    def generate(states: Any, prompts: list[list[int]], **options: Any) -> Any:
        calls.append({"prompts": prompts, **options})
        return model.generate(states, prompts, **options)

    stand_in(whisper, monkeypatch, generate)
    return calls


def stand_in(whisper: Whisper, monkeypatch: pytest.MonkeyPatch, generate: Callable[..., Any]) -> None:
    """Put something in front of CTranslate2's `generate`; all else stays the real model's."""
    model = whisper._weights._model
    double = SimpleNamespace(
        encode=model.encode, detect_language=model.detect_language, generate=generate, unload_model=model.unload_model
    )
    monkeypatch.setattr(whisper._weights, "_model", double)


def test_every_option_reaches_the_model(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = prompts_seen(whisper, monkeypatch)
    audio = recording(FR)
    token = whisper._weights._whisper.hf_tokenizer.token_to_id
    whisper.transcribe(audio, ask(), ignore)
    whisper.transcribe(audio, ask(task="translate", language="fr", beam_size=2), ignore)
    whisper.transcribe(audio, ask(prompt="le rapport", hotwords="Anna"), ignore)
    usual, translated, prompted = calls[:3]
    assert usual["beam_size"] == 5
    assert usual["prompts"][0] == [token(f"<|{name}|>") for name in ("startoftranscript", "fr", "transcribe")]
    assert translated["beam_size"] == 2
    assert translated["prompts"][0] == [token(f"<|{name}|>") for name in ("startoftranscript", "fr", "translate")]
    context = prompted["prompts"][0]
    assert context[0] == token("<|startofprev|>")
    assert whisper._weights.text(context[1:-3]) == "Anna le rapport"


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (RU, {"prompt": "Claire Claire Claire"}),
        (RU, {"hotwords": "Monday Marco Monday"}),
        (RU, {"beam_size": 1}),
        (EN2, {"task": "translate"}),
        (EN2, {"temperature": 1.0}),
    ],
)
def test_every_option_changes_what_is_written(
    whisper: Whisper, usual: Callable[[str], Transcription], name: str, option: dict[str, Any]
) -> None:
    assert said(whisper.transcribe(recording(name), ask(**option), ignore)) != said(usual(name))


def test_a_prompt_too_long_is_cut_and_told_of(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = prompts_seen(whisper, monkeypatch)
    heard = whisper.transcribe(
        recording(FR), ask(prompt="le rapport de juin " * 200 + "fin", hotwords="Anna " * 300), ignore
    )
    assert any("longer than the model can read" in warning for warning in heard.warnings)
    context = whisper._weights.text(calls[0]["prompts"][0])
    assert context.startswith("Anna")
    assert context.endswith("fin")
    assert len(calls[0]["prompts"][0]) <= 224 + 3


def test_temperature_makes_decoding_random(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = prompts_seen(whisper, monkeypatch)
    whisper.transcribe(recording(FR), ask(temperature=0.5), ignore)
    assert calls[0]["sampling_temperature"] == 0.5
    assert calls[0]["sampling_topk"] == 0
    assert all(call["sampling_temperature"] >= 0.5 for call in calls)


def test_batches_are_as_large_as_asked_and_cost_no_words(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = prompts_seen(whisper, monkeypatch)
    heard = {size: said(whisper.transcribe(recording(EN2), ask(batch_size=size), ignore)) for size in (1, 3)}
    assert {len(call["prompts"]) for call in calls} == {1, 2}  # the recording has two chunks
    assert jiwer.wer(heard[1], heard[3]) < 0.03


def test_a_short_sound_is_given_few_tokens(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = prompts_seen(whisper, monkeypatch)
    whisper.transcribe(part(recording(EN2), 0, 2), ask(language="en"), ignore)
    whisper.transcribe(recording(EN2), ask(language="en"), ignore)
    assert calls[0]["max_length"] < 250 < calls[-1]["max_length"] == 448


@pytest.mark.parametrize("context", [0, 223])
@pytest.mark.parametrize("seconds", [0.5, 2.0, 30.0])
@pytest.mark.parametrize("manner", [Manner(5), Manner(1), Manner(5, 0.6)])
def test_there_is_room_for_the_densest_speech_and_a_text_cut_off_is_known(
    endless: Whisper, whisper: Whisper, seconds: float, context: int, manner: Manner
) -> None:
    """Byte-level tokens of some scripts come at 32 a second; Whisper itself writes 224, or what the prompt leaves."""
    for backend, ended in ((endless, False), (whisper, True)):
        weights = backend._weights
        sounds = weights.encode([recording(EN2).mono(0, seconds)])
        [decoded] = weights.decode(sounds, [weights.prompt("en", "transcribe", [100] * context)], manner)
        if manner.temperature == 0 or not ended:  # what is drawn by chance may go on as long as it likes
            assert decoded.ended is ended
        if not decoded.ended:
            assert len(decoded.tokens) >= min(32 * seconds, 222)


def test_no_part_of_a_text_cut_off_is_taken_for_the_whole(endless: Whisper) -> None:
    """Although what is written before the cut may look like a text."""
    heard = endless.transcribe(part(recording(EN2), 0, 6.5), ask(language="en"), ignore)
    assert heard.segments == ()
    assert heard.warnings


def test_more_words_than_a_model_can_write_at_once_are_decoded_in_parts(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real model, allowed so few tokens for a long sound that its text is cut off in mid-sentence."""
    from hansard.transcribers import whisper_model

    audio = part(recording(EN2), 0, 15)
    monkeypatch.setattr(whisper_model, "MOST_TOKENS", 100)
    temperatures = faulty(whisper, monkeypatch, lambda *_: None)
    heard = whisper.transcribe(audio, ask(language="en"), ignore)
    spoken = plain(" ".join(turn["text"] for turn in turns(EN2) if turn["end"] < 15))
    assert jiwer.wer(spoken, said(heard)) < 0.2
    assert heard.warnings == ()
    assert temperatures == [0.0, 0.0]


def test_onset_and_offset_decide_what_counts_as_speech(whisper: Whisper, usual: Callable[[str], Transcription]) -> None:
    for strict in ({"vad_onset": 0.9999}, {"vad_offset": 0.9999, "vad_onset": 0.9999}):
        heard = whisper.transcribe(recording(EN2), ask(**strict), ignore)
        assert len(said(heard).split()) < 0.9 * len(said(usual(EN2)).split())


# The guard


def result(tokens: list[int], logprob: float = -0.3, no_speech: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(sequences_ids=[tokens], scores=[logprob], no_speech_prob=no_speech)


def faulty(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch, fault: Callable[[float, float], SimpleNamespace | None]
) -> list[float]:
    """Let `generate` give a faulty result where `fault(temperature, seconds)` has one; the temperatures asked for.

    `seconds` are those of the longest sound in the batch.
    """
    model, decode, temperatures, longest = whisper._weights._model, whisper._weights.decode, [], 0.0

    def noted(sounds: Encoded, *others: Any) -> list[Decoded]:
        nonlocal longest
        longest = max(sounds.frames) * FRAME_S
        return decode(sounds, *others)

    def generate(states: Any, prompts: list[list[int]], **options: Any) -> list[Any]:
        temperature = options.get("sampling_temperature", 0.0)
        temperatures.append(temperature)
        wrong = fault(temperature, longest)
        return [wrong] * len(prompts) if wrong else list(model.generate(states, prompts, **options))

    monkeypatch.setattr(whisper._weights, "decode", noted)
    stand_in(whisper, monkeypatch, generate)
    return temperatures


@pytest.fixture
def tokens(whisper: Whisper) -> Callable[[str], list[int]]:
    return lambda text: whisper._weights._encode(" " + text)


LOOP = "the budget is late " * 12
DENSE = " ".join("".join(word) for word in np.random.default_rng(0).choice(list("abdefgiklmnorstu"), (200, 5)))


@pytest.fixture(params=["loop", "doubt", "density", "nothing"])
def broken(request: pytest.FixtureRequest, tokens: Callable[[str], list[int]]) -> SimpleNamespace:
    """What a model gives when it fails, and how the answer tells of it."""
    return {
        "loop": SimpleNamespace(result=result(tokens(LOOP)), told="repeated itself; these words were left out"),
        "doubt": SimpleNamespace(result=result(tokens("the budget"), logprob=-3.0), told="unsure of the words"),
        "density": SimpleNamespace(result=result(tokens(DENSE)), told="more words than can be said"),
        "nothing": SimpleNamespace(result=result([]), told="no words were recognised"),
    }[request.param]


def test_a_failing_chunk_is_decoded_again_at_a_higher_temperature(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch, broken: SimpleNamespace
) -> None:
    audio = part(recording(EN2), 0, 3.2)  # one sentence
    temperatures = faulty(whisper, monkeypatch, lambda temperature, _: broken.result if temperature < 0.3 else None)
    heard = whisper.transcribe(audio, ask(language="en"), ignore)
    assert temperatures == [0.0, 0.2, 0.4]
    assert [segment.sureness and segment.sureness.temperature for segment in heard.segments] == [0.4]
    assert jiwer.wer(plain(turns(EN2)[0]["text"]), said(heard)) < 0.5  # of a random sample
    assert heard.warnings == ()


def test_what_no_temperature_mends_is_decoded_in_parts(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch, broken: SimpleNamespace
) -> None:
    audio = part(recording(EN2), 0, 15)
    faulty(whisper, monkeypatch, lambda _, seconds: broken.result if seconds > 11 else None)
    heard = whisper.transcribe(audio, ask(language="en"), ignore)
    spoken = plain(" ".join(turn["text"] for turn in turns(EN2) if turn["end"] < 15))
    assert jiwer.wer(spoken, said(heard)) < 0.2
    assert heard.warnings == ()


def test_what_nothing_mends_is_told_of_with_its_times(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch, broken: SimpleNamespace
) -> None:
    audio = part(recording(EN2), 0, 3.2)
    temperatures = faulty(whisper, monkeypatch, lambda *_: broken.result)
    heard = whisper.transcribe(audio, ask(language="en"), ignore)
    [warning] = heard.warnings
    assert broken.told in warning
    assert "0.2-3.2 s" in warning
    assert temperatures == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    if "unsure" in broken.told:
        assert {segment.text for segment in heard.segments} == {"the budget"}
    else:
        assert heard.segments == ()


def test_tries_are_bounded(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch, tokens: Callable[[str], list[int]]
) -> None:
    calls = faulty(whisper, monkeypatch, lambda *_: result(tokens(LOOP)))
    whisper.transcribe(part(recording(EN2), 0, 12), ask(language="en", batch_size=64), ignore)
    assert len(calls) == 6 + 3 + 3  # the whole at six temperatures, parts and their parts at three


@pytest.fixture
def silent(tokens: Callable[[str], list[int]]) -> SimpleNamespace:
    """What a model gives that hears nobody speak."""
    return result(tokens("Thank you."), logprob=-1.5, no_speech=0.95)


def test_no_speech_is_silence_and_not_tried_again(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch, silent: SimpleNamespace
) -> None:
    monkeypatch.setattr(whisper, "_voice_activity", briefly)
    temperatures = faulty(whisper, monkeypatch, lambda *_: silent)
    heard = whisper.transcribe(recording(FR), ask(language="en"), ignore)
    assert (heard.segments, heard.warnings, temperatures) == ((), (), [0.0])


def test_no_speech_where_somebody_speaks_is_tried_again(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch, silent: SimpleNamespace
) -> None:
    audio = part(recording(EN2), 0, 15)
    faulty(whisper, monkeypatch, lambda _, seconds: silent if seconds > 11 else None)
    heard = whisper.transcribe(audio, ask(language="en"), ignore)
    spoken = plain(" ".join(turn["text"] for turn in turns(EN2) if turn["end"] < 15))
    assert jiwer.wer(spoken, said(heard)) < 0.2
    assert heard.warnings == ()


def test_speech_in_which_a_model_always_hears_nobody_is_told_of(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch, silent: SimpleNamespace
) -> None:
    temperatures = faulty(whisper, monkeypatch, lambda *_: silent)
    heard = whisper.transcribe(part(recording(EN2), 0, 3.2), ask(language="en"), ignore)
    assert heard.segments == ()
    assert heard.warnings == ("somebody speaks and no words were recognised: 0.2-3.2 s",)
    assert len(temperatures) == 6


def test_a_sentence_left_out_is_decoded_by_itself(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch, tokens: Callable[[str], list[int]]
) -> None:
    """The model ends after the first sentence of many, as it does when it waits to be shown the rest."""
    first = whisper._weights._first_time
    early = result([first, *tokens("The security team finished the report yesterday."), first + 170])
    faulty(whisper, monkeypatch, lambda _, seconds: early if seconds > 13 else None)
    audio = part(recording(EN2), 0, 15)
    heard = whisper.transcribe(audio, ask(language="en"), ignore)
    spoken = plain(" ".join(turn["text"] for turn in turns(EN2) if turn["end"] < 15))
    assert jiwer.wer(spoken, said(heard)) < 0.2


def test_what_is_really_said_over_and_over_is_kept(whisper: Whisper) -> None:
    turn = turns(EN2)[2]
    line = part(recording(EN2), turn["start"] - 0.1, turn["end"] + 0.3)
    audio = Audio(np.tile(line.samples, (1, 9)))
    heard = whisper.transcribe(audio, ask(language="en"), ignore)
    assert 7 <= said(heard).count("friday") <= 10


@pytest.fixture(scope="module")
def endless() -> Iterator[Whisper]:
    """The real model, kept from ever ending its text: it goes on until its tokens run out."""
    backend = remembering(load(vad_method="silero"))
    weights = backend._weights
    weights._suppressed += [weights._eot, *range(weights._first_time, weights._first_time + 1501)]
    yield backend
    backend.close()


def test_a_model_that_loops_by_itself_is_caught(endless: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    temperatures = faulty(endless, monkeypatch, lambda *_: None)
    heard = endless.transcribe(part(recording(EN2), 0, 3.2), ask(language="en"), ignore)
    assert len(temperatures) > 1
    assert not loops("".join(segment.text for segment in heard.segments))


@pytest.mark.parametrize(
    ("threshold", "told"),
    [({"compression_ratio_threshold": 0.5}, "repeated itself"), ({"logprob_threshold": 0.0}, "unsure of the words")],
)
def test_the_thresholds_of_the_settings_count(threshold: dict[str, float], told: str) -> None:
    whisper = load(vad_method="silero", **threshold)
    heard = whisper.transcribe(part(recording(EN2), 0, 3.2), ask(language="en"), ignore)
    whisper.close()
    assert any(told in warning for warning in heard.warnings)


@pytest.mark.parametrize(("threshold", "tries"), [(0.5, 1), (1.0, 6)])
def test_the_no_speech_threshold_of_the_settings_counts(
    monkeypatch: pytest.MonkeyPatch, silent: SimpleNamespace, threshold: float, tries: int
) -> None:
    whisper = load(vad_method="silero", no_speech_threshold=threshold)
    monkeypatch.setattr(whisper, "_voice_activity", briefly)
    temperatures = faulty(whisper, monkeypatch, lambda *_: silent)
    whisper.transcribe(part(recording("silence_noise"), 0, 3.0), ask(language="en"), ignore)
    whisper.close()
    assert len(temperatures) == tries


# Memory


def test_batches_halve_when_memory_runs_out_and_stay_small(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = whisper._weights._model, []
    known = [turn for turn in turns(EN3) if turn["end"] < 75]
    audio = part(recording(EN3), 0, known[-1]["end"] + 0.3)

    def scarce(states: Any, prompts: list[list[int]], **options: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise RuntimeError("CUDA failed with error out of memory")
        return model.generate(states, prompts, **options)

    stand_in(whisper, monkeypatch, scarce)
    heard = whisper.transcribe(audio, ask(batch_size=8), ignore)
    assert heard.warnings == ("memory was short: chunks were decoded 2 at a time, not 8",)
    assert jiwer.wer(plain(" ".join(turn["text"] for turn in known)), said(heard)) <= 0.07
    assert sizes[0] > 2
    assert max(sizes[sizes.index(2) :]) == 2


@pytest.mark.parametrize("error", [RuntimeError("CUDA failed with error out of memory"), MemoryError()])
@pytest.mark.parametrize("verb", ["encode", "generate"])
def test_when_not_even_one_chunk_fits_the_error_says_so(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch, verb: str, error: Exception
) -> None:
    def scarce(*_: object, **__: object) -> Any:
        raise error

    stand_in(whisper, monkeypatch, whisper._weights._model.generate)
    monkeypatch.setattr(whisper._weights._model, verb, scarce)
    with pytest.raises(OutOfMemoryError, match="COMPUTE_TYPE"):
        whisper.transcribe(recording(FR), ask(), ignore)


def test_other_errors_of_the_engine_are_not_taken_for_memory() -> None:
    def broken(_: object) -> list[int]:
        raise RuntimeError("cuBLAS failed")

    with pytest.raises(RuntimeError, match="cuBLAS"):
        list(Batch(4).run([1, 2], broken))


def test_a_voice_activity_model_short_of_memory_is_told_of(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        whisper, "_voice_activity", lambda audio, report: replace(everywhere(audio, report), warnings=("few windows",))
    )
    assert "few windows" in whisper.transcribe(part(recording(EN2), 0, 3.2), ask(), ignore).warnings


# Given spans


def test_each_span_gives_one_segment_in_the_order_given(whisper: Whisper) -> None:
    known = turns(EN2)[:6]
    order = [3, 0, 5, 1, 2, 4]
    spans = [Span(known[n]["start"] - 0.1, known[n]["end"] + 0.1) for n in order]
    spans.insert(2, Span(0.0, 0.2))  # nothing is said there
    spans.append(Span(known[0]["start"] - 0.1, known[1]["end"] + 0.1))  # overlaps two others
    spans.append(Span(500.0, 501.0))  # behind the recording
    heard = whisper.transcribe(recording(EN2), ask(), ignore, spans)
    assert [(s.start, s.end) for s in heard.segments] == [(s.start, s.end) for s in spans]
    texts = [plain(segment.text) for segment in heard.segments]
    expected = [plain(known[n]["text"]) for n in order]
    expected.insert(2, "")
    expected += [plain(known[0]["text"] + " " + known[1]["text"]), ""]
    assert texts[2] == texts[-1] == ""
    assert jiwer.wer(" ".join(expected), " ".join(texts)) < 0.1
    assert heard.language == "en"


def test_a_long_span_is_one_segment(whisper: Whisper) -> None:
    audio = recording(EN2)
    heard = whisper.transcribe(audio, ask(), ignore, [Span(0, audio.duration), Span(0.3, 3.2)])
    assert len(heard.segments) == 2
    assert error_rate(EN2, replace(heard, segments=heard.segments[:1])) <= 0.05


def test_spans_of_several_languages(whisper: Whisper) -> None:
    known = turns(EN_FR)[3:7]  # from English to French
    spans = [Span(turn["start"] - 0.1, turn["end"] + 0.1) for turn in known]
    heard = whisper.transcribe(recording(EN_FR), ask(language="multi"), ignore, spans)
    assert [segment.language for segment in heard.segments] == [turn["language"] for turn in known]
    assert jiwer.wer(plain(" ".join(turn["text"] for turn in known)), said(heard)) <= 0.1


def test_segments_tell_how_sure_the_model_was(whisper: Whisper) -> None:
    heard = whisper.transcribe(recording(EN2), ask(language="en"), ignore)
    assert heard.segments
    for segment in heard.segments:
        assert segment.sureness
        assert -1 < segment.sureness.logprob < 0
        assert 0 <= segment.sureness.no_speech <= 1


def test_no_spans_give_no_segments(whisper: Whisper) -> None:
    assert whisper.transcribe(recording(FR), ask(), ignore, []).segments == ()


# Word times


@pytest.mark.parametrize(("name", "most"), [(EN2, 0.1), (EN_FR, 0.15), (RU, 0.15)])
def test_words_are_timed_by_attention(whisper: Whisper, name: str, most: float) -> None:
    """The model's own times are 0.07-0.15 s off in the mean with faster-whisper."""
    audio = recording(name)
    segments = [Segment(turn["start"], turn["end"], turn["text"]) for turn in turns(name)]
    timed = whisper.time_words(audio, segments, ignore)
    truth = [word for turn in turns(name) for word in turn["words"]]
    words = [word for segment in timed for word in segment.words]
    assert [word.text for word in words] == [word["word"] for word in truth]
    assert np.mean([abs(word.start - true["start"]) for word, true in zip(words, truth, strict=True)]) < most
    for before, after in zip(segments, timed, strict=True):
        assert (after.start, after.end, after.text) == (before.start, before.end, before.text)
        for one, two in pairwise(after.words):
            assert before.start <= one.start <= one.end <= two.start + 1e-6
        assert after.words[-1].end <= before.end
        assert all(word.score is not None and 0 <= word.score <= 1 for word in after.words)


def test_segments_in_any_order_without_text_or_too_long_keep_their_place(whisper: Whisper) -> None:
    audio = recording(EN2)
    one, two, three = (Segment(t["start"], t["end"], t["text"], speaker="A") for t in turns(EN2)[:3])
    silent, long = Segment(0, 0.3, ""), Segment(0, 45, "one two three " * 300)
    seen: list[float] = []
    timed = whisper.time_words(audio, [three, silent, one, long, two], seen.append)
    assert [(s.start, s.end, s.text, s.speaker) for s in timed] == [
        (s.start, s.end, s.text, s.speaker) for s in (three, silent, one, long, two)
    ]
    assert timed[1].words == ()
    assert [word.text for word in timed[2].words] == one.text.split()
    assert len(timed[3].words) == 900
    assert timed[3].words[0].start == 0
    assert timed[3].words[-1].end == pytest.approx(45)
    assert seen[-1] == 1.0
    assert whisper.time_words(audio, [], ignore) == ()


@pytest.mark.parametrize("length", [1e-5, 0.001, 0.015, 0.019, 0.03])
def test_the_shortest_of_segments_is_timed_beside_others(whisper: Whisper, length: float) -> None:
    audio, turn = recording(EN2), turns(EN2)[0]
    usual = Segment(turn["start"], turn["end"], turn["text"])
    starts = (turn["end"] + 1, audio.duration - length)
    shorts = [Segment(start, start + length, "the budget") for start in starts]
    _, *timed = whisper.time_words(audio, [usual, *shorts], ignore)
    for start, short in zip(starts, timed, strict=True):
        assert [word.text for word in short.words] == ["the", "budget"]
        assert all(start <= word.start <= word.end <= start + length for word in short.words)
    assert whisper.time_words(audio, shorts[1:], ignore)[0].words


def test_words_that_the_model_has_no_times_for_are_spread(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = SimpleNamespace(alignments=[], text_token_probs=[])
    double = SimpleNamespace(encode=whisper._weights._model.encode, align=lambda *_: [nothing])
    monkeypatch.setattr(whisper._weights, "_model", double)
    [timed] = whisper.time_words(recording(EN2), [Segment(1.0, 2.0, "ab cd", language="en")], ignore)
    assert [(word.start, word.end) for word in timed.words] == [(1.0, 1.5), (1.5, 2.0)]


def test_words_timed_in_smaller_batches_are_logged(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = whisper._weights._model
    segments = [Segment(turn["start"], turn["end"], turn["text"], language="en") for turn in turns(EN3)]

    def scarce(states: Any, start: list[int], texts: list[list[int]], frames: list[int]) -> Any:
        if len(texts) > 2:
            raise RuntimeError("CUDA failed with error out of memory")
        return model.align(states, start, texts, frames)

    double = SimpleNamespace(encode=model.encode, align=scarce, detect_language=model.detect_language)
    monkeypatch.setattr(whisper._weights, "_model", double)
    assert all(segment.words for segment in whisper.time_words(recording(EN3), segments, ignore))
    assert "2 windows at a time, not 4" in caplog.text


def test_text_without_spaces_is_timed_by_characters(whisper: Whisper) -> None:
    segment = Segment(0.3, 3.0, "会議は月曜日です。", language="ja")
    [timed] = whisper.time_words(recording(EN2), [segment], ignore)
    assert "".join(word.text for word in timed.words) == segment.text
    assert len(timed.words) > 3


# Loading


@pytest.mark.parametrize(
    "fault", ["no model.bin", "garbage", "no tokenizer.json", "tokenizer garbage", "empty folder", "cut short"]
)
def test_a_broken_folder_is_a_clear_error(tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(TINY / MODEL, folder)
    if fault.startswith("no "):
        (folder / fault.removeprefix("no ")).unlink()
    elif fault == "empty folder":
        shutil.rmtree(folder)
        folder.mkdir()
    elif fault == "cut short":
        (folder / "model.bin").write_bytes((TINY / MODEL / "model.bin").read_bytes()[:1_000_000])
    else:
        (folder / ("tokenizer.json" if "tokenizer" in fault else "model.bin")).write_bytes(b"not a model" * 99)
    with pytest.raises(ModelError, match=f"model {MODEL} (is no Whisper|cannot be loaded)") as told:
        load(folder)
    assert str(tmp_path) not in str(told.value)


def test_a_folder_without_preprocessor_config_works(tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(TINY / MODEL, folder)
    (folder / "preprocessor_config.json").unlink()
    whisper = load(folder, vad_method="silero")
    assert error_rate(FR, whisper.transcribe(recording(FR), ask(), ignore)) <= 0.05
    whisper.close()


def test_the_compute_type_is_the_setting_or_what_suits_the_device() -> None:
    import ctranslate2

    usual, wide = load(vad_method="silero"), load(vad_method="silero", compute_type="float32")
    assert usual._weights._model.compute_type.startswith("int8")
    assert wide._weights._model.compute_type == "float32"
    unsupported = {"float16", "int8_float16", "bfloat16"} - ctranslate2.get_supported_compute_types("cpu")
    if not unsupported:
        pytest.skip("this processor supports every compute type")
    with pytest.raises(SettingsError, match="float32"):
        load(compute_type=unsupported.pop())

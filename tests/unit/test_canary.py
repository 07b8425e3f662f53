"""Canary: what needs no NeMo, on weights that are played; the rest on a small archive, with NeMo really installed."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import re
import runpy
import shutil
import socket
import tarfile
import tempfile
import warnings
import weakref
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from hansard.audio.speech import Activity
from hansard.errors import (
    CancelledError,
    EngineMissingError,
    ModelError,
    ModelMissingError,
    OutOfMemoryError,
    SettingsError,
    UnsupportedError,
)
from hansard.models import Models
from hansard.plan import check
from hansard.request import Request, parse
from hansard.settings import Settings
from hansard.transcribers import canary, canary_model
from hansard.transcribers.canary import LANGUAGES, LEAST_SEGMENT_S, Canary, pair_of, segments
from hansard.transcribers.canary_model import LONGEST_S, CanaryWeights, Pair, Part, Written, load
from hansard.transcript import SAMPLE_RATE, Audio, Float32, Span, Transcription
from hansard.vendors import quiet
from places import CLIPS, ROOT

pytestmark = pytest.mark.timeout(180)

small = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "models" / "make_canary.py")))
with_nemo = pytest.mark.skipif(importlib.util.find_spec("nemo") is None, reason=small.REASON)

EN = Pair("en", "en")
GOOD = "we will come back to this question at the next meeting on monday"
LOOP = ("and so on " * 12).strip()
DENSE = " ".join("".join(word) for word in np.random.default_rng(0).choice(list("abcdefghijklmnop"), (200, 6)))


def settings(folder: Path, **given: Any) -> Settings:
    return Settings(**{"models_dir": folder, "hf_hub_offline": True, "device": "cpu", "vad_method": "silero", **given})


def ask(**fields: Any) -> Request:
    return parse({"audio": "data:,", "language": "en", **fields})


def ignore(_: float) -> None:
    """A report that nobody listens to."""


@pytest.fixture
def nemo_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if NeMo were installed."""
    monkeypatch.setattr(canary_model, "installed", lambda: None)
    monkeypatch.setattr(canary, "installed", lambda: None)


# What it can do


def test_it_knows_the_25_languages_of_the_model_card() -> None:
    assert len(LANGUAGES) == 25
    assert {"en", "de", "uk", "mt"} < LANGUAGES


@pytest.mark.parametrize("name", ["canary-1b-v2", "nvidia/canary-1b-v2"])
@pytest.mark.usefixtures("nemo_there")
def test_both_its_names_mean_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(Models, "check", lambda _, repository, holds=None: asked.append((repository, holds)))
    plan = check(ask(model=name), settings(tmp_path))
    assert plan.transcriber is not None
    assert (plan.transcriber.backend, plan.transcriber.model) == ("canary", name)
    assert asked == [("nvidia/canary-1b-v2", "canary-1b-v2.nemo")]


def test_it_takes_folders_with_an_archive_of_nemo_and_no_others(tmp_path: Path) -> None:
    for name, file in (("mine", "mine.nemo"), ("whisper", "model.bin")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(b"weights")
    (tmp_path / "whisper" / "config.json").write_text("{}")
    models = Models(settings(tmp_path))
    assert Canary.takes("mine", models)
    assert not Canary.takes("whisper", models)
    assert not Canary.takes("absent", models)
    assert not Canary.takes("nvidia/parakeet", models)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"language": None}, "language"),
        ({"language": "multi"}, "multi"),
        ({"language": "ja"}, "ja"),
        ({"prompt": "Anna"}, "prompt"),
        ({"hotwords": "Anna"}, "hotwords"),
        ({"temperature": 0.5}, "temperature"),
        ({"task": "translate", "language": "de", "target_language": "fr"}, "from de to fr"),
        ({"task": "translate", "language": "fr", "target_language": "es"}, "from fr to es"),
        ({"task": "translate", "language": "en", "target_language": "ja"}, "target_language ja"),
    ],
)
@pytest.mark.usefixtures("nemo_there")
def test_what_it_cannot_do_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        check(ask(model="canary-1b-v2", **fields), settings(tmp_path))


def test_a_language_must_be_named_also_where_no_plan_was_made() -> None:
    with pytest.raises(UnsupportedError, match="name it in language"):
        pair_of(ask(language=None), "canary-1b-v2")


@pytest.mark.parametrize(
    ("fields", "pair"),
    [
        ({"language": "de"}, ("de", "de")),
        ({"language": "de", "task": "transcription"}, ("de", "de")),
        ({"language": "de", "task": "translate"}, ("de", "en")),
        ({"language": "en", "task": "translate", "target_language": "de"}, ("en", "de")),
        ({"language": "de", "task": "translate", "target_language": "de"}, ("de", "de")),
        ({"language": "en", "task": "translate"}, ("en", "en")),
    ],
)
def test_the_languages_of_a_request(fields: dict[str, Any], pair: tuple[str, str]) -> None:
    found = pair_of(ask(**fields), "canary-1b-v2")
    assert (found.source, found.target) == pair
    assert found.translates == (pair[0] != pair[1])


def test_without_nemo_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EngineMissingError) as told:
        Canary.check("canary-1b-v2", ask(), Models(settings(tmp_path)))
    command = re.search(r"run (\S+) (\S+\.txt),", told.value.sentence)
    assert command
    assert os.access(ROOT / command[1], os.X_OK)
    assert "nemo-toolkit==" in (ROOT / command[2]).read_text()


@pytest.mark.parametrize("kind", ["int8", "int8_float16"])
@pytest.mark.usefixtures("nemo_there")
def test_arithmetic_that_it_has_not_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SettingsError, match=f"COMPUTE_TYPE is {kind}"):
        Canary.check("canary-1b-v2", ask(), Models(settings(tmp_path, compute_type=kind)))


@pytest.mark.usefixtures("nemo_there")
def test_weights_out_of_reach_are_told_at_the_door(tmp_path: Path) -> None:
    models = Models(settings(tmp_path, hf_home=tmp_path, cached_models_dir=tmp_path))
    with pytest.raises(ModelMissingError):
        Canary.check("canary-1b-v2", ask(), models)


# On weights that are played


class Played:
    """Weights that write what `write` says for a sound of so many seconds, and what they were asked."""

    def __init__(self, write: Callable[[float], Written], times: bool = True) -> None:
        self.says, self.times = write, times
        self.batches: list[list[float]] = []
        self.pairs: set[Pair] = set()
        self.unknown: set[str] = set()

    def knows(self, language: str) -> bool:
        return language not in self.unknown

    def write(self, sounds: Sequence[Float32], pair: Pair, beam_size: int | None) -> list[Written]:
        self.pairs.add(pair)
        self.batches.append([len(sound) / SAMPLE_RATE for sound in sounds])
        return [self.says(seconds) for seconds in self.batches[-1]]

    def close(self) -> None: ...


def said(text: str) -> Written:
    """A text with times: each word a tenth of a second after the one before."""
    words = tuple(Part(word, 0.1 * n, 0.1 * n + 0.1) for n, word in enumerate(text.split()))
    return Written(text, (Part(text, words[0].start, words[-1].end, words),)) if words else Written("")


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Canary, Played]]:
    """Makes a Canary of played weights that hears speech in all of a recording but its last tenth."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.nemo").write_bytes(b"weights")

    def playing(write: Callable[[float], Written], times: bool = True) -> tuple[Canary, Played]:
        played = Played(write, times)
        monkeypatch.setattr(canary, "load", lambda *_: played)
        backend = Canary("mine", Models(settings(tmp_path)))
        monkeypatch.setattr(backend, "_voice_activity", spoken)
        return backend, played

    return playing


def spoken(audio: Audio, report: Callable[[float], None]) -> Activity:
    """Speech in nine tenths of a recording, with a short pause each five seconds."""
    report(1.0)
    speech = np.full(round(audio.duration * 100), 0.9, np.float32)
    speech[(np.arange(len(speech)) % 500) > 470] = 0.0
    speech[round(len(speech) * 0.9) :] = 0.0
    return Activity(speech, 0.01)


def sound(seconds: float) -> Audio:
    return Audio(np.random.default_rng(0).integers(-900, 900, (1, round(seconds * SAMPLE_RATE)), dtype=np.int16))


def test_no_piece_is_longer_than_the_model_hears(play: Callable[..., tuple[Canary, Played]]) -> None:
    backend, played = play(lambda _: said(GOOD))
    heard = backend.transcribe(sound(200), ask(batch_size=3), ignore)
    lengths = [length for batch in played.batches for length in batch]
    assert max(lengths) <= LONGEST_S + 1e-3
    assert sum(lengths) > 150
    assert max(map(len, played.batches)) == 3
    assert lengths == sorted(lengths, reverse=True)
    assert len(heard.segments) == len(lengths)
    for before, after in pairwise(heard.segments):
        assert before.end <= after.start
    assert heard.language == "en"
    assert heard.language_probability is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LOOP, "the model repeated itself"),
        (DENSE, "more words than can be said in the time"),
        ("", "somebody speaks and no words were recognised"),
    ],
)
def test_what_the_guard_refuses_is_written_again_in_halves(
    play: Callable[..., tuple[Canary, Played]], text: str, told: str
) -> None:
    backend, played = play(lambda seconds: said(GOOD if seconds < 20 else text))
    heard = backend.transcribe(sound(30), ask(), ignore)
    assert len(played.batches) == 2
    assert [segment.text for segment in heard.segments] == [GOOD] * len(played.batches[1])
    assert len(played.batches[1]) >= 2
    assert heard.warnings == ()
    backend, played = play(lambda _: said(text))
    heard = backend.transcribe(sound(30), ask(), ignore)
    assert heard.segments == ()
    [warning] = heard.warnings
    left_out = "; these words were left out" if text else ""
    assert warning.startswith(f"{told}{left_out}: 0.0-")
    assert len(played.batches) == 3


def test_each_span_gives_one_segment_in_the_order_given(play: Callable[..., tuple[Canary, Played]]) -> None:
    backend, _ = play(lambda seconds: said(f"{GOOD} {seconds:.1f}"))
    spans = [Span(40, 45), Span(0, 70), Span(95, 99), Span(3, 8), Span(500, 501), Span(2, 2)]
    heard = backend.transcribe(sound(100), ask(), ignore, spans)
    assert [(segment.start, segment.end) for segment in heard.segments] == [(span.start, span.end) for span in spans]
    assert [segment.text.count(GOOD) for segment in heard.segments] == [1, 3, 0, 1, 0, 0]
    for segment in heard.segments:
        assert segment.text.split() == [word.text for word in segment.words]
        assert all(segment.start <= word.start <= word.end <= segment.end for word in segment.words)


def test_silence_gives_no_segments_and_no_warning(play: Callable[..., tuple[Canary, Played]]) -> None:
    backend, played = play(lambda _: said(GOOD))
    backend._voice_activity = lambda audio, report: Activity(np.zeros(500, np.float32), 0.01)  # type: ignore[assignment]
    heard = backend.transcribe(sound(5), ask(), ignore)
    assert (heard.segments, heard.warnings, played.batches) == ((), (), [])


def test_progress_never_falls_and_stops_between_batches(play: Callable[..., tuple[Canary, Played]]) -> None:
    backend, played = play(lambda seconds: said(GOOD if seconds < 15 else LOOP))
    seen: list[float] = []
    backend.transcribe(sound(200), ask(batch_size=2), seen.append)
    assert seen == sorted(seen)
    assert len(seen) > 4
    assert seen[-1] == 1.0
    done = len(played.batches)

    def stop(fraction: float) -> None:
        if fraction > 0.05:
            raise CancelledError("enough")

    backend, played = play(lambda _: said(GOOD))
    with pytest.raises(CancelledError):
        backend.transcribe(sound(200), ask(batch_size=2), stop)
    assert len(played.batches) == 1 < done


def test_batches_halve_when_memory_runs_out(
    play: Callable[..., tuple[Canary, Played]], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, played = play(lambda _: said(GOOD))
    write, room = played.write, 2

    def scarce(sounds: Sequence[Float32], pair: Pair, beam_size: int | None) -> list[Written]:
        if len(sounds) > room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        return write(sounds, pair, beam_size)

    monkeypatch.setattr(played, "write", scarce)
    heard = backend.transcribe(sound(200), ask(batch_size=8), ignore)
    assert "memory was short: pieces were written" in heard.warnings[0]
    assert len(heard.segments) == sum(map(len, played.batches))
    room = 0
    with pytest.raises(OutOfMemoryError):
        backend.transcribe(sound(200), ask(batch_size=8), ignore)


@pytest.mark.parametrize(
    ("fields", "warned"),
    [
        ({}, False),
        ({"align_output": True}, True),
        ({"diarization": True}, True),
        ({"task": "translate", "target_language": "de", "diarization": True}, False),
    ],
)
def test_words_without_times_are_told_of_where_words_are_wanted(
    play: Callable[..., tuple[Canary, Played]], fields: dict[str, Any], warned: bool
) -> None:
    for times, told in ((True, "words could not be timed: 0.0-9"), (False, "has no model of word times")):
        backend, _ = play(lambda _: Written(GOOD), times)
        heard = backend.transcribe(sound(10), ask(**fields), ignore)
        assert [told in warning for warning in heard.warnings] == [True] * warned
        [segment] = heard.segments
        assert (segment.text, segment.words) == (GOOD, ())
        assert segment.start == 0


def test_a_translation_is_asked_for_in_both_languages(play: Callable[..., tuple[Canary, Played]]) -> None:
    backend, played = play(lambda _: Written(GOOD))
    heard = backend.transcribe(sound(5), ask(language="de", task="translate"), ignore)
    assert played.pairs == {Pair("de", "en")}
    assert heard.language == "de"


def test_a_language_that_an_older_canary_lacks_is_refused(play: Callable[..., tuple[Canary, Played]]) -> None:
    backend, played = play(lambda _: said(GOOD))
    played.unknown = {"mt"}
    for fields in ({"language": "mt"}, {"task": "translate", "target_language": "mt"}):
        with pytest.raises(UnsupportedError, match="language mt; take canary-1b-v2"):
            backend.transcribe(sound(5), ask(**fields), ignore)


# Times


def test_times_stay_inside_the_piece_and_in_order() -> None:
    words = (Part("a", -0.5, 0.2), Part("b.", 0.3, 0.25), Part("c", 0.1, 3.0), Part("d.", 9.0, 9.5))
    written = Written("a b. c d.", (Part("a b.", -0.5, 0.25, words[:2]), Part("c d.", 0.1, 9.5, words[2:])))
    found = segments(Span(10.0, 12.0), written)
    assert [segment.text for segment in found] == ["a b.", "c d."]
    spoken = [word for segment in found for word in segment.words]
    assert [word.text for word in spoken] == ["a", "b.", "c", "d."]
    assert [word.start for word in spoken] == sorted(word.start for word in spoken)
    for segment in found:
        assert 10.0 <= segment.start < segment.end <= 12.0
        assert all(segment.start <= word.start <= word.end <= segment.end for word in segment.words)


def test_sentences_without_words_keep_their_own_times() -> None:
    written = Written("A. B.", (Part("A.", 0.5, 1.0), Part("B.", 0.8, 30.0)))
    found = segments(Span(10.0, 12.0), written)
    assert [(segment.start, segment.end, segment.words) for segment in found] == [(10.5, 11.0, ()), (10.8, 12.0, ())]
    [late] = segments(Span(10.0, 12.0), Written("A.", (Part("A.", 5.0, 5.0),)))
    assert late.end - late.start == pytest.approx(LEAST_SEGMENT_S)


# With NeMo, on a small archive


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MODELS_DIR with the small model, and one whose archive has no model of word times."""
    root = tmp_path_factory.mktemp("models")
    small.make(root / small.NAME)
    small.make(root / "untimed", timed=False)
    return root


@pytest.fixture(scope="module")
def weights(shelf: Path) -> CanaryWeights:
    return load(shelf / small.NAME, small.NAME, settings(shelf))


@pytest.fixture(scope="module")
def untimed(shelf: Path) -> Canary:
    return Canary("untimed", Models(settings(shelf)))


@pytest.fixture(scope="module")
def speech() -> Audio:
    samples, _ = soundfile.read(CLIPS / "meeting_en_2voices.flac", dtype="int16")
    return Audio(samples[None])


@pytest.fixture(scope="module")
def sounds(speech: Audio) -> list[Float32]:
    """Sounds of different lengths, one shorter than NeMo hears."""
    return [speech.mono(a, b) for a, b in ((0.0, 4.0), (4.0, 9.0), (3.0, 20.0), (30.0, 30.3), (12.0, 14.0))]


@with_nemo
def test_a_text_does_not_depend_on_its_neighbours(weights: CanaryWeights, sounds: list[Float32]) -> None:
    together = weights.write(sounds, EN)
    assert [weights.write([sound], EN)[0].text for sound in sounds] == [one.text for one in together]
    assert len({one.text for one in together}) > 1
    for sound, one in zip(sounds, together, strict=True):
        words = [word for sentence in one.sentences for word in sentence.words]
        assert " ".join(word.text for word in words) == " ".join(part.text for part in one.sentences) == one.text
        assert len(one.sentences) == 2
        assert [word.start for word in words] == sorted(word.start for word in words)
        assert all(0 <= word.start <= word.end <= max(1.0, len(sound) / SAMPLE_RATE) + 0.1 for word in words)


@with_nemo
def test_a_short_sound_is_timed_from_its_own_beginning(weights: CanaryWeights, sounds: list[Float32]) -> None:
    """NeMo puts silence before what is shorter than a second."""
    short = sounds[3]
    assert weights.write([short], EN) == weights.write([np.pad(short, (0, SAMPLE_RATE - len(short)))], EN)


@with_nemo
def test_languages_reach_the_prompt(
    weights: CanaryWeights, sounds: list[Float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = weights._model, []
    decode = model.decoding.decode_predictions_tensor

    def listening(**given: Any) -> Any:
        prompts.append(model.tokenizer.ids_to_tokens(given["decoder_input_ids"][0].tolist()))
        return decode(**given)

    monkeypatch.setattr(model.decoding, "decode_predictions_tensor", listening)
    weights.write(sounds[:1], Pair("de", "en"))
    weights.write(sounds[:1], Pair("uk", "uk"))
    asked = [[token for token in prompt if token.startswith("<|")] for prompt in prompts]
    assert [prompt[3:5] for prompt in asked] == [["<|de|>", "<|en|>"], ["<|uk|>", "<|uk|>"]]
    assert all(prompt[5:] == ["<|pnc|>", "<|noitn|>", "<|notimestamp|>", "<|nodiarize|>"] for prompt in asked)


@with_nemo
def test_the_words_of_a_translation_have_no_times(weights: CanaryWeights, sounds: list[Float32]) -> None:
    for one in weights.write(sounds, Pair("de", "en")):
        assert len(one.sentences) == 2
        assert all(part.words == () for part in one.sentences)
        assert 0 <= one.sentences[0].start <= one.sentences[1].start


@with_nemo
def test_an_archive_without_a_model_of_word_times_invents_none(untimed: Canary, speech: Audio) -> None:
    heard = untimed.transcribe(speech, ask(), ignore)
    assert heard.segments
    assert all(segment.text and not segment.words for segment in heard.segments)
    assert heard.warnings == ()
    heard = untimed.transcribe(speech, ask(align_output=True), ignore)
    assert heard.warnings == ("model untimed has no model of word times in its archive: its words have no times",)
    assert untimed.time_words(speech, heard.segments, ignore) == heard.segments


@with_nemo
def test_a_word_that_cannot_be_spelt_costs_no_other_sound_its_times(
    weights: CanaryWeights, sounds: list[Float32]
) -> None:
    """NeMo's aligner raises where a tokenizer writes a word in other characters, as it does with a half."""
    good, bad, more = weights._timed(sounds[:3], ["A dog sat.", "We ate ½ pie.", "All saw tea."])
    assert [word.text for word in good[0].words] == ["A", "dog", "sat."]
    assert bad == ()
    assert len(more) == 1


@with_nemo
@pytest.mark.parametrize("error", ["CUDA out of memory", "CUDA error: device-side assert triggered"])
def test_times_are_not_given_up_for_want_of_memory(
    weights: CanaryWeights, sounds: list[Float32], monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError(error)

    monkeypatch.setattr(weights, "_aligned", broken)
    with pytest.raises(RuntimeError, match=error):
        weights.write(sounds, EN)


def test_special_tokens_are_no_text() -> None:
    assert canary_model._plain(" <|nospeech|><pad>") == ""
    assert canary_model._plain("<|en|> A dog  sat.<|3|> 1 < 2 | 3 > 2 ") == "A dog sat. 1 < 2 | 3 > 2"


@pytest.mark.parametrize("text", ["a b", "a b c d", "a c b"])
def test_times_that_are_not_of_the_text_are_not_used(text: str) -> None:
    words = [{"word": word, "start": 0.0, "end": 0.1} for word in "abc"]
    times = {"word": words, "segment": [{"segment": "a b c", "start": 0.0, "end": 0.1}]}
    assert canary_model._sentences(text, times) == ()
    assert len(canary_model._sentences("a b c", times)[0].words) == 3


@with_nemo
def test_the_beams_of_a_batch_are_searched_one_by_one(
    weights: CanaryWeights, sounds: list[Float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NeMo's search gives the beams of one sound the memory of another where a batch has several."""
    asked: list[int] = []
    transcribe = weights._model.transcribe

    def spy(given: Any, override_config: Any) -> Any:
        asked.append(override_config.batch_size)
        return transcribe(given, override_config=override_config)

    monkeypatch.setattr(weights._model, "transcribe", spy)
    weights.write(sounds, Pair("en", "en"), 3)
    weights.write(sounds, Pair("en", "en"))
    assert asked == [1, len(sounds)]


@with_nemo
def test_a_beam_lasts_for_one_job(weights: CanaryWeights, sounds: list[Float32]) -> None:
    own = weights.write(sounds, EN)
    beam = weights._model.decoding.cfg.beam
    assert weights.write(sounds, EN, 3)
    wide = weights._model.decoding.cfg.beam
    assert (wide.beam_size, wide.max_generation_delta) == (3, beam.max_generation_delta)
    assert weights._model.decoding.decoding.beam_search.beam_size == 3
    assert weights.write(sounds, EN) == own
    assert weights._model.decoding.cfg.beam.beam_size == beam.beam_size == 1


@with_nemo
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_other_arithmetic_serves_both_models(shelf: Path, sounds: list[Float32], kind: str) -> None:
    made = load(shelf / small.NAME, small.NAME, settings(shelf, compute_type=kind))
    for model in (made._model, made._model.timestamps_asr_model):
        assert {str(weight.dtype) for weight in model.parameters()} == {f"torch.{kind}"}
    for one in made.write(sounds, EN):
        assert sum(len(part.words) for part in one.sentences) == small.RANKS
    made.close()


@with_nemo
def test_it_leaves_no_trace(
    shelf: Path, speech: Audio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No file where it works or keeps temporary ones, no line on the console, no network, no warning kept back."""
    scratch, here = tmp_path / "scratch", tmp_path / "here"
    scratch.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked the network"))
    shown = warnings.showwarning
    backend = Canary(small.NAME, Models(settings(shelf)))
    backend.transcribe(speech, ask(), ignore)
    backend.close()
    assert not list(scratch.iterdir())
    assert not list(here.iterdir())
    assert Path.cwd() == here
    assert warnings.showwarning is shown
    assert capfd.readouterr() == ("", "")
    kept = [handler.buffer for handler in logging.getLogger("nemo_logger").handlers if hasattr(handler, "buffer")]
    assert not any(kept)


@with_nemo
def test_closing_lets_the_weights_go(shelf: Path, sounds: list[Float32]) -> None:
    made = load(shelf / small.NAME, small.NAME, settings(shelf))
    made.write(sounds[:1], EN)
    held = weakref.ref(made._model)
    made.close()
    gc.collect()
    assert held() is None


@with_nemo
def test_languages_are_looked_for_in_the_vocabulary(weights: CanaryWeights) -> None:
    assert all(weights.knows(language) for language in LANGUAGES)
    assert not weights.knows("ja")
    old = SimpleNamespace(tokenizers_dict={"spl_tokens": 0, "en": 0, "de": 0})
    played = CanaryWeights(SimpleNamespace(cfg=SimpleNamespace(decoding={}), tokenizer=old))
    assert played.knows("de")
    assert not played.knows("mt")


@with_nemo
@pytest.mark.parametrize("fault", ["garbage", "cut short", "no weights", "two archives", "another model", "prompts"])
def test_a_broken_archive_is_a_clear_error(shelf: Path, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(shelf / small.NAME, folder)
    archive = folder / f"{small.NAME}.nemo"
    if fault == "garbage":
        archive.write_bytes(b"not a model" * 99)
    elif fault == "cut short":
        archive.write_bytes(archive.read_bytes()[:300_000])
    elif fault == "two archives":
        shutil.copy(archive, folder / "another.nemo")
    else:
        repacked(archive, fault)
    with pytest.raises(ModelError, match="model broken ") as told:
        load(folder, "broken", settings(shelf))
    assert str(tmp_path) not in str(told.value)
    assert "NeMo" not in told.value.sentence


def repacked(archive: Path, fault: str) -> None:
    """Write an archive anew: without weights, as one of another class, or with other prompts."""
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(archive) as old:
            old.extractall(scratch, filter="data")
        config = Path(scratch) / "model_config.yaml"
        text = config.read_text()
        if fault == "another model":
            config.write_text(text.replace("EncDecMultiTaskModel", "EncDecRNNTModel"))
        elif fault == "prompts":
            config.write_text(text.replace("prompt_format: canary2", "prompt_format: canary"))
        else:
            (Path(scratch) / "model_weights.ckpt").unlink()
        with tarfile.open(archive, "w") as new:
            for file in Path(scratch).iterdir():
                new.add(file, file.name)


@with_nemo
def test_beside_other_archives_the_one_of_its_own_name_is_loaded(shelf: Path, tmp_path: Path) -> None:
    shutil.copytree(shelf / small.NAME, tmp_path / small.NAME)
    (tmp_path / small.NAME / "another.nemo").write_bytes(b"not a model")
    weights = load(tmp_path / small.NAME, f"nvidia/{small.NAME}", settings(tmp_path))
    assert weights.knows("en")
    weights.close()


@with_nemo
@pytest.mark.filterwarnings("ignore:CUDA initialization")
def test_a_gpu_that_is_not_there_is_told(shelf: Path) -> None:
    with quiet():
        import torch
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SettingsError, match="DEVICE=cpu"):
        load(shelf / small.NAME, small.NAME, settings(shelf, device="cuda"))


@with_nemo
def test_given_spans_of_a_real_recording(shelf: Path, speech: Audio) -> None:
    backend = Canary(small.NAME, Models(settings(shelf)))
    spans = [Span(20.0, 26.0), Span(0.0, 50.0), Span(1.0, 1.05)]
    heard: Transcription = backend.transcribe(speech, ask(), ignore, spans)
    backend.close()
    assert [(segment.start, segment.end) for segment in heard.segments] == [(span.start, span.end) for span in spans]
    assert [len(segment.words) for segment in heard.segments] == [small.RANKS, 2 * small.RANKS, 0]

"""Voxtral on a small model of random weights with real classes; what the guard refuses, on weights that are played."""

from __future__ import annotations

import gc
import json
import runpy
import shutil
import socket
import weakref
from collections.abc import Callable, Sequence
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
    OutOfMemoryError,
    SettingsError,
    UnsupportedError,
)
from hansard.models import Models
from hansard.plan import check
from hansard.request import Request, parse
from hansard.settings import Settings
from hansard.transcribers import TRANSCRIBERS
from hansard.transcribers.guard import Limits
from hansard.transcribers.voxtral import LANGUAGES, LONGEST_S, REPOSITORIES, Voxtral
from hansard.transcribers.voxtral_model import (
    BLOCK_S,
    BLOCK_TOKENS,
    CONTEXT,
    KIND,
    MOST_S,
    Budget,
    Manner,
    VoxtralWeights,
    Written,
    _drawing,
    blocks,
    load,
    room,
)
from hansard.transcript import SAMPLE_RATE, Audio, Float32, Span, Transcription
from hansard.vendors import quiet
from places import CLIPS, ROOT

pytestmark = pytest.mark.timeout(120)

small = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "models" / "make_voxtral.py")))

ANY = [*sorted(LANGUAGES), None]
LENGTHS = (0.5, 30.0, 30.1, 61.0)  # seconds
GOOD = "we will come back to this question at the next meeting on monday"
LOOP = "and so on " * 12
DENSE = " ".join("".join(word) for word in np.random.default_rng(0).choice(list("abcdefghijklmnop"), (200, 6)))


def settings(folder: Path, **given: Any) -> Settings:
    return Settings(**{"models_dir": folder, "hf_hub_offline": True, "device": "cpu", "vad_method": "silero", **given})


def ask(**fields: Any) -> Request:
    return parse({"audio": "data:,", **fields})


def ignore(_: float) -> None:
    """A report that nobody listens to."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MODELS_DIR with the small model, and one whose texts have no end."""
    root = tmp_path_factory.mktemp("models")
    small.make(root / small.NAME)
    small.make(root / "endless", ends=False)
    return root


@pytest.fixture(scope="module")
def weights(shelf: Path) -> VoxtralWeights:
    return load(shelf / small.NAME, small.NAME, settings(shelf))


@pytest.fixture(scope="module")
def endless(shelf: Path) -> VoxtralWeights:
    return load(shelf / "endless", "endless", settings(shelf))


@pytest.fixture(scope="module")
def clip() -> Float32:
    """51 s of speech, shape (samples,), half as loud: mistral-common's files of 16 bits keep that exactly."""
    sound, _ = soundfile.read(CLIPS / "meeting_en_2voices.flac", dtype="int16")
    return (sound // 2 / 32768).astype(np.float32)


def parts(clip: Float32) -> list[Float32]:
    """Four sounds of different lengths, one of them of two blocks."""
    times = ((0.0, 4.0), (4.0, 9.0), (3.0, 50.0), (30.0, 31.0))
    return [clip[round(a * SAMPLE_RATE) : round(b * SAMPLE_RATE)] for a, b in times]


# Tokens


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.0, 1), (0.1, 1), (30.0, 1), (30 + 1 / SAMPLE_RATE, 2), (60.0, 2), (1800.0, 60)]
)
def test_every_begun_half_minute_is_a_block(seconds: float, expected: int) -> None:
    assert blocks(seconds) == expected


@pytest.mark.parametrize("seconds", LENGTHS)
@pytest.mark.parametrize("most", [1000, 5000, 100_000])
def test_as_many_requests_go_into_a_call_as_its_tokens_allow(seconds: float, most: int) -> None:
    budget = Budget(around=12, context=CONTEXT, most=most)
    count = budget.at_once(seconds)
    assert count * budget.request(seconds) <= most < (count + 1) * budget.request(seconds)


@pytest.mark.parametrize("context", [100, 800, 1600, CONTEXT, 10**6])
@pytest.mark.parametrize("most", [1000, 3000, 10**6])
def test_the_longest_sound_is_the_longest_that_fits(context: int, most: int) -> None:
    budget = Budget(around=12, context=context, most=most)
    longest, limit = budget.longest, min(context, most)
    assert longest <= MOST_S
    assert longest == 0 or budget.request(longest) <= limit
    assert longest == MOST_S or budget.request(longest + BLOCK_S) > limit


@pytest.mark.parametrize("language", ANY)
def test_the_least_setting_has_room_for_the_longest_piece_in_any_language(
    weights: VoxtralWeights, language: str | None
) -> None:
    least = next(one.ge for one in Settings.model_fields["voxtral_max_tokens"].metadata if hasattr(one, "ge"))
    budget = weights.budget(language)
    assert Budget(budget.around, budget.context, least).at_once(LONGEST_S) >= 1


def test_the_longest_piece_is_one_block_whatever_rounding_does() -> None:
    assert blocks(LONGEST_S + 2 / SAMPLE_RATE) == 1


# Requests, against the processor


@pytest.fixture(scope="module")
def processed(shelf: Path, clip: Float32) -> Callable[[float, str | None], dict[str, Any]]:
    """What VoxtralProcessor makes of the first seconds of the clip, repeated."""
    from transformers import VoxtralProcessor

    processor = VoxtralProcessor.from_pretrained(shelf / small.NAME)

    def process(seconds: float, language: str | None) -> dict[str, Any]:
        with quiet():  # it asks mistral-common for what that is about to drop
            made = processor.apply_transcription_request(
                language=[language],
                audio=[sound(clip, seconds)],
                model_id="any",
                sampling_rate=SAMPLE_RATE,
                format=["WAV"],
            )
        return dict(made)

    return process


def sound(clip: Float32, seconds: float) -> Float32:
    return np.tile(clip, 2)[: round(seconds * SAMPLE_RATE)]


@pytest.mark.parametrize("seconds", LENGTHS)
@pytest.mark.parametrize("language", ["en", "hi", None])
def test_requests_are_the_processors(
    weights: VoxtralWeights,
    processed: Callable[[float, str | None], dict[str, Any]],
    seconds: float,
    language: str | None,
) -> None:
    expected = processed(seconds, language)["input_ids"][0].tolist()
    assert weights.request(blocks(seconds), language) == expected
    assert expected.count(small.AUDIO) == BLOCK_TOKENS * blocks(seconds)
    assert weights.budget(language).request(seconds) == len(expected) + room(seconds)


@pytest.mark.parametrize("seconds", LENGTHS)
def test_spectrograms_are_the_processors(
    weights: VoxtralWeights,
    clip: Float32,
    processed: Callable[[float, str | None], dict[str, Any]],
    seconds: float,
) -> None:
    expected = processed(seconds, "en")["input_features"]
    assert expected.shape[0] == blocks(seconds)
    assert weights.features(sound(clip, seconds)).equal(expected)


# Texts


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_does_not_depend_on_its_neighbours(weights: VoxtralWeights, clip: Float32, temperature: float) -> None:
    manner = Manner("en", temperature)
    together = weights.texts(parts(clip), manner, ignore)
    assert together == [weights.texts([part], manner, ignore)[0] for part in parts(clip)]
    assert len({written.text for written in together}) > 1
    assert all(written.ended and len(written.text.split()) == small.RANKS for written in together)


def test_a_text_is_that_of_transformers_own_generation(
    weights: VoxtralWeights, shelf: Path, processed: Callable[[float, str | None], dict[str, Any]], clip: Float32
) -> None:
    from transformers import VoxtralForConditionalGeneration, VoxtralProcessor

    folder = shelf / small.NAME
    model = VoxtralForConditionalGeneration.from_pretrained(folder)
    inputs = processed(9.0, "en")
    ids = model.generate(**inputs, max_new_tokens=20, eos_token_id=small.END, pad_token_id=11)
    tokenizer = VoxtralProcessor.from_pretrained(folder).tokenizer
    expected = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert weights.texts([sound(clip, 9.0)], Manner("en"), ignore) == [Written(expected, True)]


def test_random_texts_are_the_same_each_time_and_touch_no_other_randomness(
    weights: VoxtralWeights, clip: Float32
) -> None:
    import torch

    likeliest, drawn = (
        [weights.texts(parts(clip), Manner("en", warmth), ignore) for _ in range(2)] for warmth in (0.0, 1.0)
    )
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    assert weights.texts(parts(clip), Manner("en", 1.0), ignore) == drawn[0] == drawn[1]
    assert torch.random.get_rng_state().equal(before)
    assert likeliest[0] == likeliest[1] != drawn[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_are_drawn_as_likely_as_the_model_holds_them(temperature: float) -> None:
    import torch

    logits = torch.tensor([[1.0, 0.0, -1.0, 0.5]])
    draw = _drawing(temperature, torch.device("cpu"))
    counts = torch.bincount(torch.cat([draw(None, logits).argmax(dim=-1) for _ in range(4000)]), minlength=4)
    expected = torch.softmax(logits[0] / temperature, dim=-1)
    assert (counts / 4000 - expected).abs().max() < 0.03


def test_a_text_without_an_end_ends_where_its_room_does(endless: VoxtralWeights, clip: Float32) -> None:
    sounds = [clip[: 2 * SAMPLE_RATE], clip[SAMPLE_RATE : SAMPLE_RATE * 3 // 2]]
    seen: list[float] = []
    together = endless.texts(sounds, Manner("en"), seen.append)
    assert [len(written.text.split()) for written in together] == [room(2.0), room(0.5)]
    assert not any(written.ended for written in together)
    assert together == [endless.texts([one], Manner("en"), ignore)[0] for one in sounds]
    assert seen == sorted(seen)
    assert len(seen) == room(2.0)
    assert seen[-1] == 1.0


def test_a_long_text_stops_when_told(endless: VoxtralWeights, clip: Float32) -> None:
    seen: list[float] = []

    def stop(fraction: float) -> None:
        seen.append(fraction)
        if len(seen) == 3:
            raise CancelledError("enough")

    with pytest.raises(CancelledError):
        endless.texts([clip[:SAMPLE_RATE]], Manner("en"), stop)
    assert len(seen) == 3
    assert endless.texts([clip[:SAMPLE_RATE]], Manner("en"), ignore)[0].text


# Loading


def copy(shelf: Path, folder: Path, name: str = small.NAME) -> Path:
    folder.mkdir()
    for file in (shelf / name).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_nothing_is_asked_of_a_network(shelf: Path, monkeypatch: pytest.MonkeyPatch, clip: Float32) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    backend = Voxtral(small.NAME, Models(settings(shelf)))
    assert backend.transcribe(recording(clip), ask(language="en"), ignore).segments


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_weights_are_loaded_for_the_arithmetic_that_is_set(shelf: Path, clip: Float32, kind: str) -> None:
    loaded = load(shelf / small.NAME, "m", settings(shelf, compute_type=kind))
    assert str(loaded._model.dtype) == f"torch.{kind}"
    [written] = loaded.texts([clip[: 5 * SAMPLE_RATE]], Manner("en"), ignore)
    assert written.ended


@pytest.mark.parametrize("kind", ["int8", "int8_float16"])
def test_arithmetic_that_it_has_not_is_refused_before_anything_is_loaded(shelf: Path, kind: str) -> None:
    models = Models(settings(shelf, compute_type=kind))
    with pytest.raises(SettingsError, match=f"COMPUTE_TYPE is {kind}.*bfloat16"):
        Voxtral.check(small.NAME, ask(), models)
    with pytest.raises(SettingsError, match=kind):
        Voxtral(small.NAME, models)


def test_a_gpu_that_is_not_there_is_told(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SettingsError, match="DEVICE=cpu"):
        load(shelf / small.NAME, "m", settings(shelf, device="cuda"))


def test_a_package_that_is_not_installed_is_named(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mistral_common" else object())
    with pytest.raises(EngineMissingError, match="mistral-common: install"):
        Voxtral.check(small.NAME, ask(), Models(settings(shelf)))


@pytest.mark.parametrize("file", ["tekken.json", "config.json", "preprocessor_config.json"])
def test_a_file_that_is_missing_is_named(shelf: Path, tmp_path: Path, file: str) -> None:
    folder = copy(shelf, tmp_path / "m")
    (folder / file).unlink()
    with pytest.raises(ModelError, match=f"mine is no Voxtral.* {file}"):
        load(folder, "mine", settings(shelf))


@pytest.mark.parametrize("file", ["tekken.json", "config.json", "preprocessor_config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\x80not this"])
def test_a_damaged_file_is_told_without_a_path(shelf: Path, tmp_path: Path, file: str, content: bytes) -> None:
    folder = copy(shelf, tmp_path / "m")
    (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match="model mine") as refused:
        load(folder, "mine", settings(shelf))
    assert str(tmp_path) not in str(refused.value)


def test_a_tokenizer_that_knows_no_sound_is_refused(shelf: Path, tmp_path: Path) -> None:
    folder = copy(shelf, tmp_path / "m")
    tokenizer = small.tokenizer()
    del tokenizer["audio"]
    (folder / "tekken.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="of another kind"):
        load(folder, "mine", settings(shelf))


def test_weights_that_are_missing_are_not_made_up(shelf: Path, tmp_path: Path) -> None:
    folder = copy(shelf, tmp_path / "m")
    model = small.model()
    some = {name: tensor for name, tensor in model.state_dict().items() if "multi_modal_projector" not in name}
    model.save_pretrained(folder, state_dict=some)
    with pytest.raises(ModelError, match="damaged"):
        load(folder, "mine", settings(shelf))


def test_pickled_weights_are_not_read(shelf: Path, tmp_path: Path) -> None:
    folder = copy(shelf, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    small.model().save_pretrained(folder, safe_serialization=False)
    assert (folder / "pytorch_model.bin").is_file()
    with pytest.raises(ModelError, match="damaged"):
        load(folder, "mine", settings(shelf))


def test_a_context_too_small_for_a_piece_is_refused(shelf: Path, tmp_path: Path) -> None:
    folder = copy(shelf, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 512
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="small a context"):
        load(folder, "mine", settings(shelf))


def test_how_a_folder_would_generate_is_not_taken_over(
    weights: VoxtralWeights, shelf: Path, tmp_path: Path, clip: Float32
) -> None:
    folder = copy(shelf, tmp_path / "m")
    other = {"do_sample": True, "temperature": 1.8, "top_k": 3, "max_new_tokens": 2, "num_beams": 2}
    (folder / "generation_config.json").write_text(json.dumps({**other, "transformers_version": "4.57.6"}))
    loaded = load(folder, "mine", settings(shelf))
    assert loaded.texts(parts(clip), Manner("en"), ignore) == weights.texts(parts(clip), Manner("en"), ignore)


def test_a_closed_model_is_let_go(shelf: Path) -> None:
    backend = Voxtral(small.NAME, Models(settings(shelf)))
    model = weakref.ref(backend._weights._model)
    backend.close()
    gc.collect()
    assert model() is None


# Names and options


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_a_published_model_is_known_with_and_without_its_owner(repository: str) -> None:
    assert Voxtral.models[repository] == Voxtral.models[repository.removeprefix("mistralai/")] == (repository,)


def test_a_folder_of_this_kind_is_taken(shelf: Path) -> None:
    models = Models(settings(shelf))
    assert models.kind(small.NAME) == KIND
    assert Voxtral.takes(small.NAME, models)
    assert not Voxtral.takes("mistralai/Another", models)
    assert check(ask(model=small.NAME, language="hi"), settings(shelf)).model == small.NAME


@pytest.mark.parametrize("name", Voxtral.models)
def test_a_published_model_is_found_in_the_image_under_both_names(shelf: Path, tmp_path: Path, name: str) -> None:
    for repository in REPOSITORIES:
        copy(shelf, tmp_path / repository.partition("/")[2])
    plan = check(ask(model=name), settings(tmp_path))
    assert plan.transcriber is not None
    assert TRANSCRIBERS[plan.transcriber.backend] is Voxtral
    assert TRANSCRIBERS[plan.transcriber.backend](name, Models(settings(tmp_path)))


def test_a_published_model_that_is_nowhere_is_refused_at_the_door(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        check(ask(model=REPOSITORIES[0]), settings(tmp_path, hf_home=tmp_path, cached_models_dir=tmp_path))


def test_a_folder_in_mistrals_own_format_is_refused_at_the_door(shelf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Voxtral-Mini-3B-2507"
    folder.mkdir()
    (folder / "consolidated.safetensors").write_bytes(b"0")
    shutil.copy(shelf / small.NAME / "tekken.json", folder)
    with pytest.raises(ModelError, match=r"it has no config\.json, no preprocessor_config\.json"):
        check(ask(model="Voxtral-Mini-3B-2507"), settings(tmp_path))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": "Names: Anna"}, "does not take prompt"),
        ({"hotwords": "Anna"}, "does not take hotwords"),
        ({"beam_size": 3}, "does not take beam_size"),
        ({"language_detection_max_tries": 3}, "does not take language_detection_max_tries"),
        ({"language": "ru"}, "does not know language ru"),
        ({"task": "translate"}, "does not offer task translate"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(shelf: Path, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(UnsupportedError, match=told):
        check(ask(model=small.NAME, **fields), settings(shelf))


# The way of a recording, on weights that are played


class Played:
    """Weights whose texts are what a function makes of a sound's seconds; it notes how it was called."""

    def __init__(self, text: Callable[[float], Written | str], most: int = 100_000) -> None:
        self.text, self.most = text, most
        self.calls: list[list[float]] = []
        self.manners: list[Manner] = []
        self.room = 10**6  # sounds that memory holds at once

    @property
    def heard(self) -> list[float]:
        """The seconds of all sounds."""
        return [seconds for call in self.calls for seconds in call]

    def budget(self, language: str | None) -> Budget:
        return Budget(around=12, context=CONTEXT, most=self.most)

    def texts(self, sounds: Sequence[Float32], manner: Manner, report: Callable[[float], None]) -> list[Written]:
        if len(sounds) > self.room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.calls.append([len(sound) / SAMPLE_RATE for sound in sounds])
        self.manners.append(manner)
        for step in (0.25, 0.5, 1.0):
            report(step)
        texts = [self.text(seconds) for seconds in self.calls[-1]]
        return [Written(text, True) if isinstance(text, str) else text for text in texts]

    def close(self) -> None: ...


Play = Callable[..., Voxtral]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, shelf: Path) -> Play:
    """A Voxtral with the weights given, for whom somebody speaks wherever there is sound."""

    def made(weights: Played) -> Voxtral:
        monkeypatch.setattr("hansard.transcribers.voxtral.load", lambda *_: weights)
        monkeypatch.setattr("hansard.transcribers.voxtral.load_voice_activity", lambda *_: listen)
        return Voxtral(small.NAME, Models(settings(shelf)))

    return made


def listen(audio: Audio, report: Callable[[float], None]) -> Activity:
    report(1.0)
    frames = audio.samples[0, : audio.samples.shape[1] // 160 * 160].reshape(-1, 160)
    return Activity((np.abs(frames).max(axis=1) > 0).astype(np.float32), 0.01)


def recording(clip: Float32) -> Audio:
    return Audio((clip * 32768).astype(np.int16)[None])


def spoken(*lengths: float, pause: float = 4.0) -> Audio:
    """Noise of these lengths in seconds, silence between."""
    random = np.random.default_rng(0)
    silence = np.zeros(round(pause * SAMPLE_RATE), np.int16)
    sounds = [random.integers(100, 3000, round(length * SAMPLE_RATE)).astype(np.int16) for length in lengths]
    return Audio(np.concatenate([silence, *(part for one in sounds for part in (one, silence))])[None])


def texts(heard: Transcription) -> list[str]:
    return [segment.text for segment in heard.segments]


def numbered(seconds: float) -> str:
    return f"this one lasts {round(seconds)} seconds"


def test_texts_stay_in_the_order_of_their_sounds_though_the_longest_go_first(play: Play) -> None:
    weights = Played(numbered)
    heard = play(weights).transcribe(spoken(3, 9, 5, 12, 7), ask(language="en", batch_size=2), ignore)
    assert texts(heard) == [numbered(length + 0.4) for length in (3, 9, 5, 12, 7)]
    assert [len(call) for call in weights.calls] == [2, 2, 1]
    assert weights.heard == sorted(weights.heard, reverse=True)
    assert heard.warnings == ()


def test_long_speech_is_cut_into_pieces_of_one_block(play: Play) -> None:
    weights = Played(numbered)
    heard = play(weights).transcribe(spoken(100), ask(language="en"), ignore)
    assert len(heard.segments) >= 4
    assert max(weights.heard) <= BLOCK_S


def test_a_long_given_span_is_one_segment(play: Play) -> None:
    weights = Played(lambda _: GOOD)
    audio = spoken(100)
    heard = play(weights).transcribe(audio, ask(language="en"), ignore, [Span(3.0, 90.0), Span(5.0, 9.0)])
    assert [(segment.start, segment.end) for segment in heard.segments] == [(3.0, 90.0), (5.0, 9.0)]
    assert max(weights.heard) <= BLOCK_S
    assert heard.segments[0].text.count(GOOD) >= 3
    assert texts(heard)[1] == GOOD


@pytest.mark.parametrize(
    "refused",
    [LOOP, Written(GOOD, False), DENSE, ""],
    ids=["repetition", "endless", "density", "gap"],
)
def test_what_the_guard_refuses_is_transcribed_again_in_halves(play: Play, refused: Written | str) -> None:
    weights = Played(lambda seconds: refused if seconds > 20 else GOOD)
    heard = play(weights).transcribe(spoken(6, 28, 5), ask(language="en"), ignore)
    assert texts(heard) == [GOOD] * 4
    assert [len(call) for call in weights.calls] == [3, 2]
    assert sorted(segment.start for segment in heard.segments) == [segment.start for segment in heard.segments]
    assert heard.warnings == ()


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        (LOOP, "repeated itself; these words were left out"),
        (Written(GOOD, False), "came to no end; these words were left out"),
        (DENSE, "than can be said in the time; these words were left out"),
        ("", "no words were recognised"),
    ],
    ids=["repetition", "endless", "density", "gap"],
)
def test_what_nothing_mends_is_left_out_and_told(play: Play, refused: Written | str, told: str) -> None:
    weights = Played(lambda seconds: GOOD if seconds < 3 else refused)
    heard = play(weights).transcribe(spoken(2, 28), ask(language="en"), ignore)
    assert texts(heard) == [GOOD]
    assert [len(call) for call in weights.calls] == [2, 2, 4]
    [warning] = heard.warnings
    assert told in warning
    assert warning.endswith(": 9.8-38.2 s")


def test_a_threshold_of_confidence_means_nothing_to_weights_that_tell_none(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = play(Played(lambda _: GOOD))
    monkeypatch.setattr(backend, "_limits", Limits(0.6, 0.5, 2.4))
    assert texts(backend.transcribe(spoken(6), ask(language="en"), ignore)) == [GOOD]


def test_the_part_that_stands_is_kept(play: Play) -> None:
    given = iter([LOOP, GOOD, LOOP, LOOP, LOOP])
    heard = play(Played(lambda _: next(given))).transcribe(spoken(28), ask(language="en"), ignore)
    assert texts(heard) == [GOOD]
    [warning] = heard.warnings
    assert "repeated itself" in warning


def test_a_given_span_keeps_its_place_when_nothing_mends_it(play: Play) -> None:
    weights = Played(lambda seconds: LOOP if seconds > 3 else GOOD)
    heard = play(weights).transcribe(spoken(8), ask(language="en"), ignore, [Span(4.0, 6.5), Span(4.5, 8.0)])
    assert texts(heard)[0] == GOOD
    assert len(heard.segments) == 2


def test_memory_that_runs_out_halves_the_batches(play: Play) -> None:
    weights = Played(numbered)
    weights.room = 2
    heard = play(weights).transcribe(spoken(3, 5, 7, 9, 11), ask(language="en", batch_size=8), ignore)
    assert texts(heard) == [numbered(length + 0.4) for length in (3, 5, 7, 9, 11)]
    assert heard.warnings == ("memory was short: pieces were written 2 at a time, not 8",)


def test_memory_for_not_even_one_is_an_error(play: Play) -> None:
    weights = Played(numbered)
    weights.room = 0
    with pytest.raises(OutOfMemoryError):
        play(weights).transcribe(spoken(3), ask(language="en"), ignore)


def test_calls_stay_within_the_tokens_that_are_set(play: Play) -> None:
    weights = Played(numbered, most=2000)
    backend = play(weights)
    most = weights.budget("en").at_once(LONGEST_S)
    heard = backend.transcribe(spoken(3, 5, 7, 9, 11), ask(language="en"), ignore)
    assert heard.warnings == ()
    told = backend.transcribe(spoken(3, 5, 7, 9, 11), ask(language="en", batch_size=5), ignore).warnings
    assert told == (f"VOXTRAL_MAX_TOKENS allows {most} pieces at a time, not 5",)
    assert max(map(len, weights.calls)) == most
    for call in weights.calls:
        assert len(call) * weights.budget("en").request(max(call)) <= 2000


def test_the_language_is_told_from_the_text(play: Play) -> None:
    weights = Played(lambda _: "nous allons commencer par le rapport du dernier trimestre")
    heard = play(weights).transcribe(spoken(6, 7), ask(), ignore)
    assert (heard.language, heard.segments[0].language) == ("fr", None)
    assert heard.language_probability is not None
    assert weights.manners[0] == Manner(None, 0.0)
    doubted = play(Played(lambda _: "a")).transcribe(spoken(6), ask(language_detection_min_prob=1.0), ignore)
    assert any("language_detection_min_prob" in warning for warning in doubted.warnings)


def test_mixed_languages_are_told_for_each_piece(play: Play) -> None:
    french, english = "nous allons commencer par le rapport du dernier trimestre", GOOD
    weights = Played(lambda seconds: french if seconds > 7 else english)
    heard = play(weights).transcribe(spoken(6, 9, 5, pause=1.0), ask(language="multi"), ignore)
    assert [segment.language for segment in heard.segments] == ["en", "fr", "en"]
    assert weights.manners[0].language is None


def test_the_language_and_temperature_of_a_job_reach_the_weights(play: Play) -> None:
    weights = Played(numbered)
    play(weights).transcribe(spoken(6), ask(language="de", temperature=0.4), ignore)
    play(weights).transcribe(spoken(6), ask(language="de", temperature=1e-9), ignore)
    assert weights.manners == [Manner("de", 0.4), Manner("de", 0.0)]


def test_progress_never_falls_though_pieces_are_transcribed_again(play: Play) -> None:
    seen: list[float] = []
    weights = Played(lambda seconds: LOOP if seconds > 10 else GOOD)
    play(weights).transcribe(spoken(28, 6, 25), ask(language="en", batch_size=1), seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(weights.calls) > 3


def test_the_shortest_of_sounds_are_not_transcribed(play: Play) -> None:
    weights = Played(numbered)
    heard = play(weights).transcribe(spoken(6), ask(language="en"), ignore, [Span(5.0, 5.05), Span(5.0, 5.2)])
    assert [bool(text) for text in texts(heard)] == [False, True]
    assert len(weights.heard) == 1


def test_no_times_of_words_are_made_up(play: Play) -> None:
    backend = play(Played(numbered))
    segments = backend.transcribe(spoken(6), ask(language="en"), ignore).segments
    assert backend.time_words(spoken(6), segments, ignore) == segments


def test_a_job_has_the_same_text_each_time_whatever_the_batches(shelf: Path, clip: Float32) -> None:
    backend = Voxtral(small.NAME, Models(settings(shelf)))
    heard = [
        backend.transcribe(recording(clip), ask(language="multi", batch_size=size, temperature=0.8), ignore)
        for size in (1, 4, 4)
    ]
    assert heard[0] == heard[1] == heard[2]
    assert len(heard[0].segments) > 3

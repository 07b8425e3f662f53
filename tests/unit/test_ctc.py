"""CTC alignment on models that run: against the truth, against whisperx.align, and where it cannot work."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

import nltk
import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC
from whisperx.alignment import DEFAULT_ALIGN_MODELS_HF, DEFAULT_ALIGN_MODELS_TORCH, align, load_align_model

from hansard.aligners import bundles, ctc
from hansard.aligners.acoustic import WILDCARD, Acoustic, Vocabulary
from hansard.aligners.ctc import Ctc
from hansard.aligners.table import aligner_of
from hansard.errors import CancelledError, HubError, ModelError, OutOfMemoryError, UnsupportedError
from hansard.models import Models
from hansard.settings import Settings
from hansard.transcript import SAMPLE_RATE, Audio, Segment, Word
from loopback import Loopback, Player
from places import CLIPS, TINY

PATIENCE_S = 60.0

TINY_CTC = "wav2vec2-tiny-synthetic"
MEETINGS = {"meeting_en_3voices": "en", "meeting_fr": "fr", "meeting_ru": "ru"}
LANGUAGES_OF_WHISPERX = sorted({**DEFAULT_ALIGN_MODELS_HF, **DEFAULT_ALIGN_MODELS_TORCH})
UNSPACED_TEXTS = {
    "ja": "今日は2014年です。",
    "zh": "今天有43个人。",
    "yue": "佢哋今日好呀。",
    "th": "สวัสดี เท่านั้น",
    "lo": "ສະບາຍດີ ເຈົ້າ",
    "km": "ខ្ញុំជាខ្មែរ។",
    "my": "မြန်မာဘာသာ",
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def models(folder: Path = TINY, **settings: Any) -> Models:
    return Models(Settings(models_dir=folder, device="cpu", cached_models_dir=folder, hf_home=folder, **settings))


@cache
def aligner(language: str) -> Ctc:
    return Ctc(language, models(align_models={language: TINY_CTC}))


@cache
def clip(name: str) -> tuple[Audio, list[dict[str, Any]]]:
    samples, _ = soundfile.read(CLIPS / f"{name}.flac", dtype="int16")
    return Audio(samples[None]), json.loads((CLIPS / f"{name}.json").read_text())["turns"]


@cache
def segments(name: str) -> tuple[Segment, ...]:
    """The turns of a clip, with a little silence around each, as a transcriber gives them."""
    return tuple(Segment(turn["start"] - 0.1, turn["end"] + 0.1, turn["text"]) for turn in clip(name)[1])


def truth(name: str) -> np.ndarray:
    return np.array([(word["start"], word["end"]) for turn in clip(name)[1] for word in turn["words"]])


def words(found: ctc.Alignment) -> list[Word]:
    return [word for segment in found.segments for word in segment.words]


def times(found: ctc.Alignment) -> np.ndarray:
    """Start and end of every word, shape (words, 2)."""
    return np.array([(word.start, word.end) for word in words(found)])


def ignore(_: float) -> None:
    """A report that nobody listens to."""


@cache
def aligned(name: str) -> ctc.Alignment:
    return aligner(MEETINGS[name]).align(clip(name)[0], segments(name), ignore)


@contextmanager
def hooked(backend: Ctc, hook: Callable[..., Any]) -> Iterator[None]:
    """A model that runs with a hook before it."""
    handle = backend._acoustic._model.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


# Against the truth, and against WhisperX


@pytest.fixture(scope="module")
def by_whisperx() -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """The words that whisperx.align finds, with the same model, on the same segments."""
    nltk.data.path.insert(0, str(TINY / "nltk_data"))

    @cache
    def run(name: str) -> list[dict[str, Any]]:
        model, metadata = load_align_model(MEETINGS[name], "cpu", str(TINY / TINY_CTC))
        asked = [{"start": segment.start, "end": segment.end, "text": segment.text} for segment in segments(name)]
        return align(asked, model, metadata, clip(name)[0].mono(), "cpu")["word_segments"]

    yield run
    nltk.data.path.remove(str(TINY / "nltk_data"))


@pytest.mark.parametrize("name", MEETINGS)
def test_words_are_those_of_whisperx_and_nearer_to_the_truth(name: str, by_whisperx: Callable[[str], list]) -> None:
    theirs = by_whisperx(name)
    assert [word.text for word in words(aligned(name))] == [word["word"] for word in theirs]
    other = np.array([(word["start"], word["end"]) for word in theirs])
    assert np.abs(times(aligned(name)) - other).mean() <= 0.02  # 13-15 ms: 5-8 at the starts, 20-26 at the ends
    ours, rival = (np.abs(found - truth(name)).mean(axis=0) for found in (times(aligned(name)), other))
    assert (ours < rival).all()


@pytest.mark.parametrize("name", MEETINGS)
def test_words_begin_and_end_where_they_are_said(name: str) -> None:
    off = np.abs(times(aligned(name)) - truth(name))
    assert off[:, 0].mean() <= 0.01  # 3-8 ms
    assert off[:, 1].mean() <= 0.02  # 6-14 ms; through whisperx.align 19-26


@pytest.mark.parametrize("name", MEETINGS)
def test_the_text_is_kept_and_a_segment_spans_its_words(name: str) -> None:
    for asked, got in zip(segments(name), aligned(name).segments, strict=True):
        assert got.text == asked.text == " ".join(word.text for word in got.words)
        assert asked.start <= got.start == got.words[0].start
        assert got.words[-1].end == got.end <= asked.end
    assert not aligned(name).warnings


def test_the_score_tells_right_words_from_wrong_ones() -> None:
    name = "meeting_fr"
    audio, right = clip(name)[0], segments(name)
    wrong = [
        dataclasses.replace(segment, text=other.text)
        for segment, other in zip(right, right[1:] + right[:1], strict=True)
    ]
    scores = [[word.score for word in words(aligner("fr").align(audio, asked, ignore))] for asked in (right, wrong)]
    assert all(0 <= score <= 1 for score in scores[0] + scores[1])
    assert np.mean(scores[0]) > 2 * np.mean(scores[1])


# Windows and batches


def test_times_do_not_depend_on_what_else_is_in_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "meeting_en_3voices"
    monkeypatch.setattr(ctc, "BATCH", 1)
    alone = aligner("en").align(clip(name)[0], segments(name)[::-1], ignore)
    alone = dataclasses.replace(alone, segments=alone.segments[::-1])
    assert np.abs(times(alone) - times(aligned(name))).max() <= 0.02
    assert np.isclose(times(alone), times(aligned(name))).mean() > 0.99


def test_a_long_segment_is_cut_into_windows() -> None:
    name = "meeting_en_3voices"
    audio, turns = clip(name)
    whole = Segment(0, audio.duration, " ".join(turn["text"] for turn in turns))
    off = np.abs(times(aligner("en").align(audio, [whole], ignore)) - truth(name))
    assert audio.duration > 2 * ctc.LONGEST / ctc.FRAMES_PER_SECOND
    assert off[:, 0].mean() <= 0.012
    assert np.quantile(off[:, 0], 0.99) <= 0.1


def test_a_segment_at_the_very_edge_of_the_recording() -> None:
    audio, turns = clip("meeting_fr")
    start, end = (round(turns[0][side] * SAMPLE_RATE) for side in ("start", "end"))
    exact = Audio(audio.samples[:, start:end])
    found = aligner("fr").align(exact, [Segment(0, exact.duration + 0.3, turns[0]["text"])], ignore)
    expected = np.array([(word["start"], word["end"]) for word in turns[0]["words"]]) - turns[0]["start"]
    assert np.abs(times(found) - expected).mean() <= 0.02
    assert times(found).max() <= exact.duration + 0.3


@pytest.fixture(scope="module")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models that know nothing, with the characters of the languages without spaces, in two kinds."""
    folder = tmp_path_factory.mktemp("models")
    characters = sorted({character for text in UNSPACED_TEXTS.values() for character in text if character.isalpha()})
    signs = sorted(
        {sign for text in UNSPACED_TEXTS.values() for sign in text if not sign.isalnum() and sign not in " 。។"}
    )
    labels = ["<pad>", "<s>", "</s>", "<unk>", "|", *characters, *signs]
    for name, over_time in (("layer", False), ("group", True)):
        (folder / name).mkdir()
        vocabulary = folder / name / "vocab.json"
        vocabulary.write_text(json.dumps({label: column for column, label in enumerate(labels)}))
        Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(folder / name)
        Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=not over_time).save_pretrained(folder / name)
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        kind = {"feat_extract_norm": "group" if over_time else "layer", "do_stable_layer_norm": not over_time}
        config = Wav2Vec2Config(
            vocab_size=len(labels), conv_dim=(16,) * 7, num_conv_pos_embeddings=16, pad_token_id=0, **sizes, **kind
        )
        Wav2Vec2ForCTC(config).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("kind", ["layer", "group"])
def test_a_model_that_normalises_is_given_normal_sound_in_every_batch(random_models: Path, kind: str) -> None:
    model = Acoustic("ja", models(random_models, align_models={"ja": kind}))
    sound = np.random.default_rng(0).normal(0, 0.1, (3, SAMPLE_RATE)).astype(np.float32)
    together = model(sound * np.array([[1], [0.1], [0.01]], np.float32))
    for row in range(3):
        assert torch.allclose(together[row], model(sound[row : row + 1])[0], atol=1e-3)


# Languages, characters, numbers


@pytest.mark.parametrize("language", UNSPACED_TEXTS)
def test_languages_without_spaces(random_models: Path, language: str) -> None:
    backend = Ctc(language, models(random_models, align_models={language: "layer"}))
    sound = np.random.default_rng(0).normal(0, 3000, 4 * SAMPLE_RATE).astype(np.int16)
    text = UNSPACED_TEXTS[language]
    [segment] = backend.align(Audio(sound[None]), [Segment(0.5, 3.5, text)], ignore).segments
    assert segment.text == text
    assert "".join(word.text for word in segment.words) == "".join(text.split())
    assert len(segment.words) >= 4
    assert all(word.end > word.start for word in segment.words)
    assert np.all(np.diff([word.start for word in segment.words]) > 0)


def test_a_number_has_the_times_of_its_words() -> None:
    audio, asked = clip("meeting_fr")[0], segments("meeting_fr")
    digits = {"trois": "3", "cinq": "5", "sept": "7"}
    written = [
        dataclasses.replace(segment, text=" ".join(digits.get(word, word) for word in segment.text.split()))
        for segment in asked
    ]
    found = words(aligner("fr").align(audio, written, ignore))
    assert sum(word.text.isdecimal() for word in found) >= 2
    assert [(word.start, word.end) for word in found] == [
        (word.start, word.end) for word in words(aligned("meeting_fr"))
    ]


def test_money_has_the_times_of_its_words() -> None:
    name = "meeting_en_3voices"
    place = next(place for place, segment in enumerate(segments(name)) if "million dollars" in segment.text)
    spelled = aligned(name).segments[place]
    number = [word.text for word in spelled.words].index("million") - 1
    digit = ["one", "two", "three", "four", "five", "six", "seven", "eight"].index(spelled.words[number].text) + 1
    end = "." * spelled.text.endswith("dollars.")
    text = segments(name)[place].text.replace(
        f"{spelled.words[number].text} million dollars{end}", f"${digit},000,000{end}"
    )
    asked = dataclasses.replace(segments(name)[place], text=text)
    [found] = aligner("en").align(clip(name)[0], [asked], ignore).segments
    money = found.words[number]
    assert money.text.startswith(f"${digit},000,000")
    assert money.start == pytest.approx(spelled.words[number].start, abs=0.04)
    assert money.end == pytest.approx(spelled.words[number + 2].end, abs=0.04)


@pytest.mark.parametrize("text", ["Добрый день 中国 العربية", "γεια σου κόσμε", "२०१४ में", "中国"])
def test_a_text_in_another_alphabet(text: str) -> None:
    backend = Ctc("hi", models(align_models={"hi": TINY_CTC}))
    [segment] = backend.align(clip("meeting_ru")[0], [Segment(0, 5, text)], ignore).segments
    assert [word.text for word in segment.words] == text.split()
    assert all(0 <= before.start <= before.end <= 5 for before in segment.words)
    unknown = [word.score for word in segment.words if word.text[0] in "中कγάमσ२ا"]
    assert set(unknown) == {None}


def test_a_token_without_sound_lies_between_its_neighbours() -> None:
    asked = segments("meeting_fr")[0]
    plain = aligned("meeting_fr").segments[0].words
    written = asked.text.split()
    text = " ".join(["–", written[0], "–", "…", *written[1:], "♪"])
    [found] = aligner("fr").align(clip("meeting_fr")[0], [dataclasses.replace(asked, text=text)], ignore).segments
    dash, first, second, dots, third, *_ = found.words
    assert (dash.start, dash.end) == (asked.start, first.start)
    assert first.end == second.start <= second.end == dots.start <= dots.end == third.start
    assert {word.score for word in (dash, second, dots)} == {None}
    assert first.start == pytest.approx(plain[0].start, abs=0.02)


def test_characters_and_columns() -> None:
    known = Vocabulary({"-": 0, "|": 1, "e": 2, "s": 3, "'": 4, "<unk>": 5})
    assert known.blank == 0
    assert known.columns("Es's") == [2, 3, 4, 3]
    assert known.columns("éß") == [2, 3, 3]
    assert known.columns("-,\u0301") == []
    assert known.columns("7$x") == [WILDCARD] * 3
    assert Vocabulary({"a": 0, "[pad]": 1, " ": 2}).blank == 1
    assert Vocabulary({"a": 0, "[pad]": 1, " ": 2}).separator == 2


# What goes wrong


@pytest.mark.parametrize(
    "bad",
    [
        Segment(1, 1.1, "far too many words for a tenth of a second"),
        Segment(9000, 9001, "behind the end"),
        Segment(2, 2, "no time"),
        Segment(1, 3, "… – !"),
    ],
    ids=["too short", "beyond", "empty", "punctuation"],
)
def test_a_segment_that_cannot_be_aligned_costs_only_itself(bad: Segment) -> None:
    before, after = segments("meeting_fr")[:2]
    found = aligner("fr").align(clip("meeting_fr")[0], [before, bad, after], ignore)
    assert found.segments[1] == bad
    assert (found.segments[0], found.segments[2]) == aligned("meeting_fr").segments[:2]
    [warning] = found.warnings
    assert "1 of 3 segments" in warning
    assert f"{bad.start:.1f} s" in warning


def test_a_model_that_fails_on_a_window_costs_only_its_segments() -> None:
    seen = []

    def spoil_the_first(_: object, inputs: tuple[torch.Tensor, ...]) -> Any:
        seen.append(inputs)
        return (inputs[0] * float("nan"),) if len(seen) == 1 else None

    with hooked(aligner("fr"), spoil_the_first):
        found = aligner("fr").align(clip("meeting_fr")[0], segments("meeting_fr"), ignore)
    failed = [place for place, segment in enumerate(found.segments) if not segment.words]
    assert 0 < len(failed) < len(found.segments)
    assert found.warnings[0].startswith(f"{len(failed)} of ")
    for place, segment in enumerate(found.segments):
        assert segment == (segments if place in failed else lambda name: aligned(name).segments)("meeting_fr")[place]


@pytest.mark.parametrize("step", ["tokens", "_path"])
def test_an_unexpected_error_costs_only_its_segment_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    failing(monkeypatch, step, KeyError("surprise"))
    found = aligner("fr").align(clip("meeting_fr")[0], segments("meeting_fr"), ignore)
    [failed] = [place for place, segment in enumerate(found.segments) if not segment.words]
    assert found.segments[failed] == segments("meeting_fr")[failed]
    for place, segment in enumerate(found.segments):
        assert place == failed or segment == aligned("meeting_fr").segments[place]
    assert found.warnings[0].startswith(f"1 of {len(found.segments)} segments")
    assert "surprise" in caplog.text


@pytest.mark.parametrize(
    "error", [CancelledError("enough"), MemoryError(), RuntimeError("CUDA error: an illegal memory access")]
)
@pytest.mark.parametrize("step", ["tokens", "_path"])
def test_what_concerns_all_segments_is_let_through(
    monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    failing(monkeypatch, step, error)
    with pytest.raises(type(error)):
        aligner("fr").align(clip("meeting_fr")[0], segments("meeting_fr"), ignore)


def failing(monkeypatch: pytest.MonkeyPatch, step: str, error: Exception) -> None:
    """Let a step of the alignment fail the first time."""
    real, errors = getattr(ctc, step), [error]

    def fail_once(*given: Any) -> Any:
        if errors:
            raise errors.pop()
        return real(*given)

    monkeypatch.setattr(ctc, step, fail_once)


def test_texts_without_words_are_no_failure() -> None:
    silent = [Segment(0, 1, ""), Segment(1, 2, "  ")]
    found = aligner("fr").align(clip("meeting_fr")[0], silent, ignore)
    assert found == ctc.Alignment(tuple(silent))


def test_batches_shrink_when_memory_runs_out() -> None:
    def only_pairs(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    name = "meeting_en_3voices"
    with hooked(aligner("en"), only_pairs):
        found = aligner("en").align(clip(name)[0], segments(name), ignore)
    assert [word.text for word in words(found)] == [word.text for word in words(aligned(name))]
    assert np.abs(times(found) - times(aligned(name))).max() <= 0.02
    [warning] = found.warnings
    assert "memory ran out" in warning


def test_one_window_too_much_for_the_memory_is_an_error() -> None:
    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes")

    with hooked(aligner("fr"), full), pytest.raises(OutOfMemoryError):
        aligner("fr").align(clip("meeting_fr")[0], segments("meeting_fr"), ignore)


def test_progress_is_told_after_every_batch_and_a_cancel_is_heard() -> None:
    told: list[float] = []

    def report(fraction: float) -> None:
        told.append(fraction)
        if len(told) == 3:
            raise CancelledError("enough")

    name = "meeting_en_3voices"
    aligner("en").align(clip(name)[0], segments(name), (fractions := []).append)
    assert len(fractions) >= 4
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    with pytest.raises(CancelledError):
        aligner("en").align(clip(name)[0], segments(name), report)
    assert told == fractions[:3]


# Which model, and from where


def test_whisperx_knows_the_languages_that_are_promised() -> None:
    assert len(LANGUAGES_OF_WHISPERX) == 41


@pytest.mark.parametrize("language", LANGUAGES_OF_WHISPERX)
def test_every_language_of_whisperx_has_a_repository_or_a_bundle(language: str) -> None:
    name = aligner_of(language, Settings())
    bundle = getattr(torchaudio.pipelines, name, None)
    assert name.count("/") == 1 if bundle is None else (bundle._path.endswith((".pt", ".pth")) and bundle.get_labels())


def test_a_language_without_a_model_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="ALIGN_MODELS"):
        Ctc("is", models())


def test_the_operators_model_comes_first(random_models: Path) -> None:
    chosen = Acoustic("fr", models(random_models, align_models={"fr": "layer"}))
    assert chosen.vocabulary.columns("今a") == [chosen.vocabulary.columns("今")[0], WILDCARD]


def test_loading_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address))
    assert Acoustic("fr", models(align_models={"fr": TINY_CTC})).vocabulary.columns("é")
    assert asked == []


def test_a_broken_model_is_an_error_without_a_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in (TINY / TINY_CTC).iterdir():
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes()[: 1000 if file.stem == "model" else None])
    with pytest.raises(ModelError, match="language fr") as caught:
        Ctc("fr", models(tmp_path, align_models={"fr": "broken"}))
    assert str(tmp_path) not in str(caught.value) + caplog.text
    assert "the aligner of language fr cannot be loaded: SafetensorError" in caplog.text


@pytest.mark.parametrize("said", ["CUDA error: unspecified launch failure", "CUDA out of memory. Tried to allocate"])
def test_a_gpu_that_fails_while_a_model_is_loaded_is_no_fault_of_the_model(
    monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr("whisperx.alignment.load_align_model", fail)
    with pytest.raises(RuntimeError, match=said):
        Ctc("fr", models(align_models={"fr": TINY_CTC}))


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, bytes]:
    """English's bundle of torchaudio with a small network of random weights in it: its file's name and content."""
    name = DEFAULT_ALIGN_MODELS_TORCH["en"]
    real = getattr(torchaudio.pipelines, name)
    layers = [(8, kernel, stride) for _, kernel, stride in real._params["extractor_conv_layer_config"]]
    small = {
        "extractor_conv_layer_config": layers,
        "encoder_embed_dim": 16,
        "encoder_num_layers": 1,
        "encoder_num_heads": 2,
        "encoder_ff_interm_features": 16,
    }
    little = dataclasses.replace(real, _params={**real._params, **small})
    monkeypatch.setattr(torchaudio.pipelines, name, little)
    torch.manual_seed(0)
    weights = torchaudio.models.wav2vec2_model(
        **{**little._params, "aux_num_out": len(real.get_labels()) + 3}
    ).state_dict()
    torch.save(weights, tmp_path / "weights")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return real._path, (tmp_path / "weights").read_bytes()


def aligns(backend: Ctc) -> bool:
    sound = np.random.default_rng(0).normal(0, 3000, 3 * SAMPLE_RATE).astype(np.int16)
    [segment] = backend.align(Audio(sound[None]), [Segment(0, 3, "Don't well-known.")], ignore).segments
    return [word.text for word in segment.words] == ["Don't", "well-known."]


def test_a_bundle_comes_with_the_image(bundle: tuple[str, bytes], tmp_path: Path) -> None:
    file, content = bundle
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / file).write_bytes(content)
    assert aligns(Ctc("en", models(tmp_path, hf_hub_offline=True)))


def test_a_bundle_is_downloaded_once(
    bundle: tuple[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, content = bundle
    with Loopback() as server:
        monkeypatch.setattr(bundles, "BUNDLES", server.url("/models"))
        server.plays[f"/models/{file}"] = lambda player: player.answer(HTTPStatus.OK, content)
        assert aligns(Ctc("en", models(tmp_path)))
        assert aligns(Ctc("en", models(tmp_path, hf_hub_offline=True)))
        assert len(server.asked) == 1


def test_a_bundle_whose_download_broke_off_goes_on_from_there(
    bundle: tuple[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, content = bundle
    half = len(content) // 2

    def break_off_once(player: Player) -> None:
        if player.first():
            player.answer(HTTPStatus.OK, content[:half], Content_Length=len(content))
        else:
            rest = content[int(player.headers["Range"].removeprefix("bytes=").removesuffix("-")) :]
            begin = len(content) - len(rest)
            said = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            player.answer(HTTPStatus.PARTIAL_CONTENT, rest, Content_Range=said)

    heard: list[tuple[int, int | None]] = []
    with Loopback() as server:
        monkeypatch.setattr(bundles, "BUNDLES", server.url("/models"))
        server.plays[f"/models/{file}"] = break_off_once
        with pytest.raises(HubError, match="language en"):
            Ctc("en", models(tmp_path))
        assert stored(tmp_path) == [f"{file}.part"]
        name = DEFAULT_ALIGN_MODELS_TORCH["en"]
        bundles.folder(name, "en", models(tmp_path), lambda *told: heard.append(told))
        assert server.asked[1].headers["Range"] == f"bytes={half}-"
    assert (heard[0], heard[-1]) == ((half, len(content)), (len(content), len(content)))
    assert stored(tmp_path) == [file]
    assert aligns(Ctc("en", models(tmp_path, hf_hub_offline=True)))


@pytest.mark.parametrize("status", [HTTPStatus(200), HTTPStatus(206), HTTPStatus(416)])
def test_a_part_that_is_of_no_use_is_fetched_anew(
    bundle: tuple[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: HTTPStatus
) -> None:
    """By a server that knows no ranges, or has a shorter file by now, or sends another range."""
    file, content = bundle
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / f"{file}.part").write_bytes(b"x" * 1000)

    def answer(player: Player) -> None:
        asked = player.headers["Range"]
        body = content if status == HTTPStatus.OK or not asked else b"no"
        player.answer(status if asked else HTTPStatus.OK, body, Content_Range="bytes 5-6/7" if asked else None)

    with Loopback() as server:
        monkeypatch.setattr(bundles, "BUNDLES", server.url("/models"))
        server.plays[f"/models/{file}"] = answer
        assert aligns(Ctc("en", models(tmp_path)))
    assert stored(tmp_path) == [file]


def test_a_server_in_trouble_costs_no_part(
    bundle: tuple[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchaudio").mkdir()
    part = tmp_path / "torchaudio" / f"{bundle[0]}.part"
    part.write_bytes(bundle[1][:1000])
    with Loopback() as server:
        monkeypatch.setattr(bundles, "BUNDLES", server.url("/models"))
        server.plays[f"/models/{bundle[0]}"] = lambda player: player.answer(HTTPStatus.SERVICE_UNAVAILABLE)
        with pytest.raises(HubError):
            Ctc("en", models(tmp_path))
    assert part.read_bytes() == bundle[1][:1000]


def test_of_two_who_want_a_bundle_one_downloads_it(
    bundle: tuple[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the server and its engine process: the lock of the file is each opener's own."""
    name, waits = DEFAULT_ALIGN_MODELS_TORCH["en"], threading.Event()

    def slow(player: Player) -> None:
        assert waits.wait(PATIENCE_S)
        player.answer(HTTPStatus.OK, bundle[1])

    with Loopback() as server, ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(bundles, "BUNDLES", server.url("/models"))
        server.plays[f"/models/{bundle[0]}"] = slow
        first = pool.submit(bundles.folder, name, "en", models(tmp_path))
        while not server.asked:
            time.sleep(0.001)
        settings = models(tmp_path).settings
        second = pool.submit(bundles.folder, name, "en", Models(settings, report=lambda _: waits.set()))
        assert first.result(PATIENCE_S) == second.result(PATIENCE_S)
        assert len(server.asked) == 1
    assert stored(tmp_path) == [bundle[0]]


def stored(hf_home: Path) -> list[str]:
    """What was downloaded."""
    return [path.name for path in (hf_home / "torchaudio").iterdir()]


def test_a_bundle_that_is_none_is_fetched_again(
    bundle: tuple[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, content = bundle
    with Loopback() as server:
        monkeypatch.setattr(bundles, "BUNDLES", server.url("/models"))
        server.plays[f"/models/{file}"] = lambda player: player.answer(
            HTTPStatus.OK, b"<html>" if player.first() else content
        )
        with pytest.raises(ModelError, match="language en"):
            Ctc("en", models(tmp_path))
        assert aligns(Ctc("en", models(tmp_path)))


@pytest.mark.parametrize("begun", [True, False])
def test_a_server_that_falls_silent_is_not_waited_for(
    bundle: tuple[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    def stall(player: Player) -> None:
        if begun:
            player.start(HTTPStatus.OK, Content_Length=len(bundle[1]))
            player.wfile.write(bundle[1][:1000])
        player.stall()

    with Loopback() as server:
        monkeypatch.setattr(bundles, "BUNDLES", server.url("/models"))
        monkeypatch.setattr(bundles, "READ_S", 0.2)
        server.plays[f"/models/{bundle[0]}"] = stall
        with pytest.raises(HubError, match="could not be downloaded"):
            Ctc("en", models(tmp_path))
    assert stored(tmp_path) == [f"{bundle[0]}.part"]


@pytest.mark.parametrize("length", [True, False])
def test_a_slow_download_tells_how_far_it_is_and_hears_a_cancel(
    bundle: tuple[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: bool
) -> None:
    told: list[float] = []

    def trickle(player: Player) -> None:
        player.start(HTTPStatus.OK, Content_Length=len(bundle[1]) if length else None)
        for byte in range(100):
            player.wfile.write(bundle[1][byte : byte + 1])
            if player.server.over.wait(0.02):
                return

    def report(fraction: float) -> None:
        told.append(fraction)
        if len(told) == 5:
            raise CancelledError("enough")

    with Loopback() as server:
        monkeypatch.setattr(bundles, "BUNDLES", server.url("/models"))
        server.plays[f"/models/{bundle[0]}"] = trickle
        with pytest.raises(CancelledError):
            Ctc("en", Models(models(tmp_path).settings, report=report))
    assert told == sorted(told)
    assert (told[-1] > 0) is length
    assert stored(tmp_path) == [f"{bundle[0]}.part"]


@pytest.mark.parametrize("offline", [True, False])
def test_a_bundle_that_cannot_be_had(
    bundle: tuple[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    def refuse(player: Player) -> None:
        player.answer(HTTPStatus.SERVICE_UNAVAILABLE)

    with Loopback() as server:
        monkeypatch.setattr(bundles, "BUNDLES", server.url("/models"))
        server.plays[f"/models/{bundle[0]}"] = refuse
        with pytest.raises(HubError, match=bundle[0]) as caught:
            Ctc("en", models(tmp_path, hf_hub_offline=offline))
        assert len(server.asked) == (not offline)
    assert ("HF_HUB_OFFLINE" in str(caught.value)) is offline

"""No field of a job is swallowed: for each, two jobs that differ in it alone and whose answers differ by it.

The jobs go through the door, the real engine process and small real models. The answers are compared without their
timings and log, unless these are what the field is about.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from handler import Worker
from hansard.audio.decode import decode
from hansard.request import Request
from hansard.settings import Settings
from hansard.transcript import SAMPLE_RATE
from hub import Hub
from places import CLIPS, DATA

pytestmark = pytest.mark.timeout(300)

Answer = dict[str, Any]
Ask = Callable[..., Answer]

TOKEN = "hf_accepted_reader"
GATED = "someone/gated-whisper"
RU, EN = (CLIPS / "meeting_ru.flac").as_uri(), (CLIPS / "meeting_en_2voices.flac").as_uri()
FR, MIXED = (CLIPS / "meeting_fr.flac").as_uri(), (CLIPS / "meeting_en_fr.flac").as_uri()
CALL = (
    DATA / "meeting.ogg"
).as_uri()  # the voices of the English clip, in sentences that the small Whisper does not know
TURNS = [{"start": 5.2, "end": 6.9, "speaker": "Anna"}, {"start": 1.7, "end": 4.9, "speaker": "Boris"}]
TOLD_APART = {"audio": RU, "diarization": True}


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Samples of the two people of the English clip, some sentences of each; beside them French on a right channel."""
    folder = tmp_path_factory.mktemp("voices")
    sound = decode(CLIPS / "meeting_en_2voices.flac", folder, lambda _: None)
    truth = json.loads((CLIPS / "meeting_en_2voices.json").read_text())["turns"]
    samples = []
    for name, speaker in (("Rms", "SPEAKER_00"), ("Slt", "SPEAKER_01")):
        turns = [turn for turn in truth if turn["speaker"] == speaker][:3]
        path = folder / f"{name}.flac"
        soundfile.write(path, np.concatenate([sound.mono(t["start"], t["end"]) for t in turns]), SAMPLE_RATE)
        samples.append({"name": name, "url": path.as_uri()})
    french = decode(CLIPS / "meeting_fr.flac", folder, lambda _: None).mono()
    soundfile.write(folder / "stereo.wav", np.stack([np.zeros_like(french), french], axis=1), SAMPLE_RATE)
    return samples


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A hub with one gated repository, whose terms the owner of TOKEN has accepted."""
    tiny = CLIPS.parent / "whisper-tiny-synthetic-ct2"
    with Hub({GATED: tiny}, gated={GATED}, accounts={TOKEN: {GATED}}) as served:
        yield served


@pytest.fixture(scope="module")
def ask(
    settings: Settings, hub: Hub, voices: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ask]:
    """`ask(field=value, ...)` posts a job to one warm worker; the same job is run only once."""
    folder = tmp_path_factory.mktemp("worker")
    given = {
        "work_dir": folder / "work",
        "log_file": folder / "container_log.txt",
        "audio_roots": (CLIPS, DATA, Path(voices[0]["url"].removeprefix("file://")).parent),
        "hf_hub_offline": False,
        "hf_endpoint": hub.url,
        "hf_home": folder / "hub",
        "log_tail_lines": 500,
    }
    before = logging.getLogger().handlers[:]
    worker = Worker(settings.model_copy(update=given), echo=False)
    steps: list[Answer] = []

    async def note(state: Answer) -> None:
        steps.append(state)

    with asyncio.Runner() as runner:

        @cache
        def once(job: str) -> Answer:
            steps.clear()
            return runner.run(worker.handle({"id": "t1", "input": json.loads(job)}, note))

        yield lambda **fields: once(json.dumps(fields, sort_keys=True))
    worker.close()
    logging.getLogger().handlers[:] = before
    assert not list((folder / "work").iterdir()), "the worker left files behind"


def texts(answer: Answer) -> list[str]:
    return [segment["text"] for segment in answer["segments"]]


def speakers(answer: Answer) -> set[str]:
    return {segment["speaker"] for segment in answer["segments"]}


def starts(answer: Answer) -> list[float]:
    return [segment["start"] for segment in answer["segments"]]


def named(answer: Answer) -> set[str]:
    return {segment["speaker_id"] for segment in answer["segments"] if "speaker_id" in segment}


def told(answer: Answer) -> list[str]:
    return list(answer["warnings"])


def batches(answer: Answer) -> list[str]:
    """What the log says of the size of batches."""
    return [line.split("decoded")[1] for line in answer["logs"] if "at a time" in line]


Case = tuple[dict[str, Any], dict[str, Any], Callable[[Answer], Any]]

CASES: dict[str, Case] = {
    "audio": ({"audio": FR}, {"audio": RU}, texts),
    "task": ({"audio": RU}, {"audio": RU, "task": "diarization"}, lambda a: [s.get("text") for s in a["segments"]]),
    "model": ({"audio": FR}, {"audio": FR, "model": "sphinx"}, lambda a: (a["model"], texts(a))),
    "language": (
        {"audio": MIXED},
        {"audio": MIXED, "language": "multi"},
        lambda a: [s.get("language") for s in a["segments"]],
    ),
    "target_language": (  # Whisper writes English only; that Canary writes what is asked for is its own test
        {"audio": RU, "task": "translate", "target_language": "de"},
        {"audio": RU, "task": "translate", "target_language": "en"},
        lambda a: a.get("error"),
    ),
    "prompt": ({"audio": RU}, {"audio": RU, "prompt": "Бюджет."}, texts),
    "hotwords": ({"audio": RU}, {"audio": RU, "hotwords": "квартальный"}, texts),
    "temperature": ({"audio": EN}, {"audio": EN, "temperature": 1.0}, texts),
    "beam_size": ({"audio": RU}, {"audio": RU, "beam_size": 1}, texts),
    "batch_size": ({"audio": RU}, {"audio": RU, "batch_size": 1}, batches),
    "diarization": ({"audio": RU}, TOLD_APART, lambda a: a.get("speakers")),
    "num_speakers": (TOLD_APART, {**TOLD_APART, "num_speakers": 1}, speakers),
    "min_speakers": (
        {"audio": RU, "task": "diarization"},
        {"audio": RU, "task": "diarization", "min_speakers": 3},
        speakers,
    ),
    "max_speakers": (TOLD_APART, {**TOLD_APART, "max_speakers": 1}, speakers),
    "align_output": (
        {"audio": RU},
        {"audio": RU, "align_output": True},
        lambda a: ["words" in s for s in a["segments"]],
    ),
    "vad_onset": ({"audio": RU, "vad_offset": 0.3}, {"audio": RU, "vad_offset": 0.3, "vad_onset": 0.999}, starts),
    "vad_offset": ({"audio": MIXED}, {"audio": MIXED, "vad_offset": 0.01}, lambda a: (starts(a), texts(a))),
    "language_detection_min_prob": ({"audio": RU}, {"audio": RU, "language_detection_min_prob": 1.0}, told),
    "language_detection_max_tries": (
        {"audio": EN},
        {"audio": EN, "language_detection_max_tries": 1},
        lambda a: a["language_probability"],
    ),
    "speaker_verification": (
        {"audio": CALL, "diarization": True},
        {"audio": CALL, "diarization": True, "speaker_verification": True, "speaker_samples": ["Rms", "Slt"]},
        named,
    ),
    "speaker_samples": (
        {"audio": CALL, "diarization": True, "speaker_verification": True, "speaker_samples": ["Rms", "Slt"]},
        {"audio": CALL, "diarization": True, "speaker_verification": True, "speaker_samples": ["Slt"]},
        named,
    ),
    "speaker_threshold": (
        {"audio": CALL, "diarization": True, "speaker_verification": True, "speaker_samples": ["Slt"]},
        {
            "audio": CALL,
            "diarization": True,
            "speaker_verification": True,
            "speaker_samples": ["Slt"],
            "speaker_threshold": 1.0,
        },
        named,
    ),
    "segments": (
        {"audio": RU, "task": "transcription"},
        {"audio": RU, "task": "transcription", "segments": TURNS},
        lambda a: [(t["start"], t["speaker"]) for t in a["transcriptions"]],
    ),
    "output_formats": (
        {"audio": RU},
        {"audio": RU, "output_formats": ["srt", "tsv"]},
        lambda a: ("srt" in a, "tsv" in a),
    ),
    "channels": (
        {"audio": "STEREO"},
        {"audio": "STEREO", "channels": "separate"},
        lambda a: [(s.get("speaker"), s["text"]) for s in a["segments"]],
    ),
    "huggingface_access_token": (
        {"audio": FR, "model": GATED},
        {"audio": FR, "model": GATED, "huggingface_access_token": TOKEN},
        lambda a: a.get("error") or texts(a),
    ),
    "debug": (
        {"audio": RU},
        {"audio": RU, "debug": True},
        lambda a: any("stage decode took" in line for line in a["logs"]),
    ),
}
"""Of each field two jobs, and what of their answers the field is about."""


def test_every_field_is_here() -> None:
    assert set(CASES) == set(Request.model_fields)


@pytest.mark.parametrize("field", CASES)
def test_the_field_changes_the_outcome(field: str, ask: Ask, voices: list[dict[str, str]]) -> None:
    *jobs, about = CASES[field]
    samples = {sample["name"]: sample for sample in voices}
    stereo = Path(voices[0]["url"].removeprefix("file://")).with_name("stereo.wav").as_uri()
    jobs = [{**job, "audio": stereo} if job["audio"] == "STEREO" else job for job in jobs]
    given = [
        {**job, "speaker_samples": [samples[name] for name in job["speaker_samples"]]}
        if "speaker_samples" in job
        else job
        for job in jobs
    ]
    without, with_it = (ask(**job) for job in given)
    assert "error" not in with_it, with_it
    assert about(without) != about(with_it)


# What some of them change it to


def test_known_voices_get_their_names(
    ask: Ask, voices: list[dict[str, str]], meeting_truth: list[dict[str, Any]]
) -> None:
    """The samples are of another recording of the same two voices."""
    answer = ask(audio=CALL, task="diarization", speaker_verification=True, speaker_samples=voices)
    right = wrong = 0.0
    for segment in answer["segments"]:
        middle = (segment["start"] + segment["end"]) / 2
        expected = [turn["speaker"].title() for turn in meeting_truth if turn["start"] <= middle <= turn["end"]]
        length = segment["end"] - segment["start"]
        right += length * ([segment.get("speaker_id")] == expected)
        wrong += length * (segment.get("speaker_id") not in (*expected, None))
        assert -1 <= segment.get("similarity", 0) <= 1
    assert right > 0.9 * sum(turn["end"] - turn["start"] for turn in meeting_truth)
    assert wrong == 0


def test_a_gated_model_is_downloaded_with_the_token_of_the_job(ask: Ask, hub: Hub) -> None:
    refused = ask(audio=FR, model=GATED)
    assert refused["error"].startswith("token_missing: ")
    assert f"{hub.url}/{GATED}" in refused["error"]
    answer = ask(audio=FR, model=GATED, huggingface_access_token=TOKEN)
    assert texts(answer) == texts(ask(audio=FR))
    assert TOKEN not in json.dumps(answer)


def test_a_silent_channel_decides_nothing(ask: Ask, voices: list[dict[str, str]]) -> None:
    stereo = Path(voices[0]["url"].removeprefix("file://")).with_name("stereo.wav").as_uri()
    answer = ask(audio=stereo, channels="separate")
    assert (answer["detected_language"], answer["speakers"], answer["warnings"]) == ("fr", ["SPEAKER_01"], [])
    assert answer["language_probability"] > 0.9


def test_given_turns_keep_their_order_and_their_speakers(ask: Ask) -> None:
    answer = ask(audio=RU, task="transcription", segments=TURNS)
    assert [(t["start"], t["end"], t["speaker"]) for t in answer["transcriptions"]] == [
        (turn["start"], turn["end"], turn["speaker"]) for turn in TURNS
    ]
    assert "договор" in answer["transcriptions"][0]["text"]
    assert "проект" in answer["transcriptions"][1]["text"]


def test_task_diarization_gives_turns_and_nothing_else(ask: Ask) -> None:
    answer = ask(audio=RU, task="diarization")
    assert answer["segments"]
    assert all(set(turn) == {"start", "end", "speaker"} for turn in answer["segments"])
    assert "detected_language" not in answer

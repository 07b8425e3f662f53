"""The worker's manners, judged by what the platform sees: real SDK, real engine, real sound, loopback only.

Every test ends with the platform's own verdict (`FakePlatform.violations`): authorised requests, strict JSON, known
jobs, nothing after a final post. What is not covered here: a GPU, model hubs, the platform's public side.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_platform import CHUNK_BYTES, FakePlatform, Post

from hansard import manifest
from hansard.hub import File
from hansard.manifest import Manifest
from hansard.settings import Settings
from places import TINY

if TYPE_CHECKING:
    from conftest import StartWorker, Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

START_S = 30.0  # to the first poll; about two on an idle machine
FIRST_S = 180  # a job that may have to wait for the engine to load
STOP_JOB_S = 30.0  # from the cancel until the worker asks for its next job
BETWEEN_PROGRESS_S = 1.0
IN_FLIGHT = 2  # progress posts that were already under way when the job was stopped; else one a second would follow
RESTART_S = 90  # an engine that is loaded again, and a sentence: well under the half hour of sound that was stopped
SMALL_ANSWER = 1_200  # bytes: between those of the clip without words and those of three clips, one after the other
LONG_STAGES = ("transcribe", "diarize")


def _slowly(content: bytes, seconds: float) -> float:
    """The delay per chunk with which a recording takes this long to serve."""
    return seconds / (len(content) // CHUNK_BYTES + 1)


def _done(platform: FakePlatform, job_input: dict[str, Any]) -> Post:
    """Submit a job and wait for its result."""
    return platform.wait_final(platform.submit(job_input), FIRST_S)


def _output(post: Post) -> dict[str, Any]:
    assert post.error is None, post.error
    return dict(post.output)


def _in_the_engine(post: Post) -> bool:
    """Is this progress of the work that the engine process does for minutes?"""
    return post.output["stage"] in LONG_STAGES


def _long_job(worker: Worker, recording: bytes, **fields: Any) -> str:
    """Start a job of minutes and wait until the engine works on it."""
    url = worker.platform.serve("long.flac", recording)
    job_id = worker.platform.submit({"audio": url, **fields})
    worker.platform.wait_progress(job_id, FIRST_S, _in_the_engine)
    return job_id


def test_asks_for_its_first_job_soon(worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    waited = worker.platform.wait_take(60).at - worker.started_at
    with capsys.disabled():
        print(f"\nfirst job-take {waited:.2f} s after the process was started")
    assert waited <= START_S


def test_a_gpu_does_not_draw_torch_into_the_process_that_polls(start_worker: StartWorker, tmp_path: Path) -> None:
    """The SDK's own checks load torch where they find a GPU: seconds of start, and its memory taken twice."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'CUDA Version: 12.8  Tesla T4, 15360 MiB'\n")
    smi.chmod(0o755)
    worker = start_worker(
        PATH=f"{tmp_path}:{os.environ['PATH']}", RUNPOD_SKIP_AUTO_SYSTEM_CHECKS=None, RUNPOD_SKIP_GPU_CHECK=None
    )
    worker.platform.wait_take(60)
    mapped = Path(f"/proc/{worker.pid}/maps").read_text()
    assert "libpython" in mapped or "bin/python" in mapped
    for library in ("libtorch", "libcuda", "libcublas", "ctranslate2"):
        assert library not in mapped


def _damaged_model(folder: Path) -> dict[str, str]:
    """The environment of a worker whose default model was cut short after it had been fetched."""
    shutil.copytree(TINY / "whisper-tiny-synthetic-ct2", folder / "own-whisper")
    weights = folder / "own-whisper" / "model.bin"
    whole = File("model.bin", "0" * 64, weights.stat().st_size)
    manifest.write(folder / "own-whisper", Manifest("owner/own-whisper", "0" * 40, (whole,)))
    os.truncate(weights, 1000)
    return {"MODELS_DIR": str(folder), "DEFAULT_MODEL": "own-whisper"}


UNFIT = {
    "model out of reach": (
        {"DEFAULT_MODEL": "large-v3", "HF_HUB_OFFLINE": "true"},
        "model Systran/faster-whisper-large-v3 is not on this machine",
    ),
    "model damaged": (_damaged_model, "model own-whisper is damaged: model.bin"),
    "no GPU": ({"DEVICE": "cuda", "DEFAULT_MODEL": "sphinx"}, "a GPU and CTranslate2 finds none; set DEVICE=cpu"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_unfit_worker_says_why_and_leaves(
    case: str, start_worker: StartWorker, tmp_path: Path, short: bytes
) -> None:
    given, why = UNFIT[case]
    env = given if isinstance(given, dict) else given(tmp_path)
    if "DEVICE" in env and Settings().on_gpu:
        pytest.skip("there is a GPU")
    worker = start_worker(**env)
    job_id = worker.platform.submit({"audio": worker.platform.serve("never.flac", short)})
    assert worker.wait(60) == 1
    (ping,) = worker.platform.pings
    assert ping.query["status"] == "unhealthy"
    assert ping.query["check"] == "fitness"
    assert ping.query["reason"].startswith("UnfitError: unfit: ")
    assert why in ping.query["reason"]
    assert why in worker.log()
    assert worker.platform.takes == []
    assert worker.platform.posts(job_id) == []
    assert worker.left_in_work_dir() == []
    assert worker.health()[0] == 1


def test_later_jobs_find_the_models_warm(worker: Worker, both_voices: bytes, short: bytes) -> None:
    """The first of them is the first that the worker ever gets."""
    platform = worker.platform
    one, other = platform.serve("one.flac", both_voices), platform.serve("other.flac", short)
    jobs = [platform.submit({"audio": url, "diarization": True}) for url in (one, other, one)]
    platform.wait_taken(jobs[0], FIRST_S)
    engine = worker.engine()
    first, _, again = (_output(platform.wait_final(job_id, FIRST_S))["segments"] for job_id in jobs)
    loaded = re.findall(r"loaded (.+) in [\d.]+ s", worker.log())
    assert loaded
    assert len(loaded) == len(set(loaded)), "a model was loaded again for a later job"
    assert first == again, "one job's sound changes the next job's answer"
    assert worker.engine() == engine
    assert worker.left_in_work_dir() == []


@pytest.fixture(scope="module")
def finished(worker: Worker, clip: bytes) -> Post:
    """The result of a job that asks for nearly all there is, on the shared worker."""
    url = worker.platform.serve("success.ogg", clip)
    fields = {"diarization": True, "align_output": True, "output_formats": ["srt"]}
    return _done(worker.platform, {"audio": f"{url}?sig=S", **fields})


def test_success(platform: FakePlatform, finished: Post) -> None:
    output = _output(finished)
    expected = {"segments", "detected_language", "duration", "speakers", "model", "timings", "warnings", "logs", "srt"}
    assert expected <= set(output)
    assert output["duration"] == pytest.approx(18.065, abs=0.1)
    assert output["detected_language"] == "en"
    assert "meeting" in " ".join(segment["text"] for segment in output["segments"]).lower()
    assert {segment["speaker"] for segment in output["segments"]} == set(output["speakers"])
    assert len(output["speakers"]) == 2
    assert "-->" in output["srt"]
    _check_times(output)
    posts = platform.posts(finished.job_id)
    assert [post.is_final for post in posts].count(True) == 1  # one that came later would be a violation


def test_wrong_settings_are_told_to_the_platform(start_worker: StartWorker) -> None:
    worker = start_worker(DEFAULT_MODEL="larg-v3")
    assert worker.wait(60) == 1
    (ping,) = worker.platform.pings
    assert (ping.query["status"], ping.query["check"]) == ("unhealthy", "settings")
    assert "DEFAULT_MODEL: model 'larg-v3' is not known" in ping.query["reason"]
    assert "DEFAULT_MODEL" in worker.output()
    assert "Traceback" not in worker.output()
    assert worker.platform.takes == []


def test_sigterm_before_the_first_poll(start_worker: StartWorker) -> None:
    """PID 1 of a container ignores a signal that has no handler, and the SDK's comes late."""
    worker = start_worker()
    end = time.monotonic() + 60
    while not any(worker.work_dir.glob("*/health")) and time.monotonic() < end:  # the engine process was started
        time.sleep(0.01)
    worker.sigterm()
    assert worker.wait(60) == 0
    assert worker.platform.takes == []
    assert worker.left_in_work_dir() == []


def test_health_of_a_worker_that_answers(worker: Worker, finished: Post) -> None:
    _output(finished)
    end = time.monotonic() + FIRST_S
    while worker.health()[0] != 0 and time.monotonic() < end:  # models that no job has needed may still be loading
        time.sleep(0.2)
    assert worker.health() == (0, "healthy: the engine is ready\n")


def _check_times(output: dict[str, Any]) -> None:
    """Segments and words lie inside the recording, forward in time; each word names its speaker."""
    for segment in output["segments"]:
        assert 0 <= segment["start"] < segment["end"] <= output["duration"] + 0.1
        assert segment["words"]
        for word in segment["words"]:
            assert set(word) >= {"word", "start", "end", "score", "speaker"}
            assert segment["start"] - 0.01 <= word["start"] <= word["end"] <= segment["end"] + 0.01


def test_ping_names_the_job(platform: FakePlatform, clip: bytes) -> None:
    url = platform.serve("ping.ogg", clip, delay_s_per_chunk=_slowly(clip, 120))
    job_id = platform.submit({"audio": url})
    assert platform.wait_ping(60, lambda ping: ping.query.get("job_id") == job_id)
    platform.cancel(job_id)
    platform.wait_stopped(job_id, STOP_JOB_S)


@pytest.mark.parametrize(
    ("wrong", "sentences"),
    [
        ({"beam_size": 99, "vad_onset": "high"}, ("beam_size", "vad_onset")),
        ({"diarisation": True, "batch_size": 0}, ("did you mean diarization", "batch_size")),
        ({"min_speakers": 3, "max_speakers": 2, "diarization": True}, ("min_speakers is greater than max_speakers",)),
        ({"model": "no-such-model"}, ("no-such-model",)),
    ],
)
def test_bad_request(platform: FakePlatform, clip: bytes, wrong: dict[str, Any], sentences: tuple[str, ...]) -> None:
    url = platform.serve("unwanted.ogg", clip)
    before = platform.requests_for("unwanted.ogg")
    final = _done(platform, {"audio": url} | wrong)
    _check_refusal(final, ("invalid_request", "unsupported", "model_not_found"))
    assert all(sentence in final.error for sentence in sentences), final.error
    assert platform.requests_for("unwanted.ogg") == before == 0


@pytest.mark.parametrize("job_input", [{}, [], "audio.mp3", None, {"audio": ""}], ids=str)
def test_input_that_is_no_job(platform: FakePlatform, job_input: Any) -> None:
    _check_refusal(_done(platform, job_input), ("invalid_request",))


def test_text_is_not_audio(platform: FakePlatform) -> None:
    url = platform.serve("text.mp3", b"This is a text and no music at all.\n" * 200)
    _check_refusal(_done(platform, {"audio": url}), ("not_audio",))


def test_missing_recording(platform: FakePlatform) -> None:
    url = platform.serve("missing.ogg", b"no such recording", status=404)
    _check_refusal(_done(platform, {"audio": url}), ("fetch_failed",))


def test_private_address_is_refused(start_worker: StartWorker, clip: bytes) -> None:
    platform = start_worker(ALLOW_PRIVATE_URLS=None).platform
    url = platform.serve("private.ogg", clip)
    _check_refusal(_done(platform, {"audio": url}), ("url_refused",))
    assert platform.requests_for("private.ogg") == 0


def _check_refusal(final: Post, codes: tuple[str, ...]) -> None:
    """The answer is one line `code: sentence` and tells nothing of the machine."""
    assert set(final.body) <= {"error", "output"}
    assert isinstance(final.error, str)
    code, _, sentence = final.error.partition(": ")
    assert code in codes, final.error
    assert sentence
    answer = final.raw.decode()
    for private in ("Traceback", "hostname", "/hansard/", "site-packages", f'"{socket.gethostname()}"'):
        assert private not in answer


def test_cancel_while_the_engine_works(worker: Worker, short: bytes, half_an_hour: bytes) -> None:
    job_id = _long_job(worker, half_an_hour, diarization=True)
    _check_cancel(worker, job_id, short)


def test_cancel_while_the_recording_is_fetched(worker: Worker, clip: bytes, short: bytes) -> None:
    platform = worker.platform
    url = platform.serve("endless.ogg", clip, delay_s_per_chunk=_slowly(clip, 120))
    job_id = platform.submit({"audio": url})
    platform.wait_requested("endless.ogg", FIRST_S)
    _check_cancel(worker, job_id, short)


def _check_cancel(worker: Worker, job_id: str, recording: bytes) -> None:
    """Cancel a running job: silence about it from then on, and the next job is done."""
    platform = worker.platform
    url = platform.serve("next.flac", recording)
    platform.cancel(job_id)
    stopped = platform.wait_stopped(job_id, STOP_JOB_S)
    following = platform.submit({"audio": url})
    taken = platform.wait_taken(following, 60)
    assert taken - stopped <= STOP_JOB_S
    _output(platform.wait_final(following, RESTART_S))
    late = [post for post in platform.posts(job_id) if post.at > stopped]
    assert [post.body for post in platform.posts(job_id) if post.is_final] == []
    assert len(late) <= IN_FLIGHT, late
    assert [post.body for post in late if post.at > taken] == []
    assert worker.left_in_work_dir() == []


def test_sigterm_lets_the_job_end(start_worker: StartWorker, clip: bytes) -> None:
    worker = start_worker()
    platform = worker.platform
    url = platform.serve("last.ogg", clip, delay_s_per_chunk=_slowly(clip, 4))
    job_id = platform.submit({"audio": url})
    never = platform.submit({"audio": url})
    platform.wait_requested("last.ogg", FIRST_S)
    takes = len(platform.takes)
    worker.sigterm()
    _output(platform.wait_final(job_id, FIRST_S))
    assert worker.wait(60) == 0
    assert len(platform.takes) == takes
    assert platform.posts(never) == []
    assert worker.left_in_work_dir() == []


def test_progress_is_ordered_and_rare(platform: FakePlatform, short: bytes) -> None:
    url = platform.serve("progress.flac", short, delay_s_per_chunk=_slowly(short, 4))
    final = _done(platform, {"audio": url, "diarization": True, "align_output": True})
    _output(final)
    posts = platform.posts(final.job_id)
    assert posts[-1] is final  # a late progress post would be a violation
    progress = posts[:-1]
    assert len(progress) >= 3
    assert all(post.is_progress and _is_progress_payload(post.output) for post in progress), progress
    percents = [post.output["percent"] for post in progress]
    assert percents == sorted(percents)
    # counted, since a message that is held up on its way comes near to the next one
    assert len(progress) <= 2 + (final.at - platform.wait_taken(final.job_id, 0)) / BETWEEN_PROGRESS_S


def _is_progress_payload(payload: Any) -> bool:
    return (
        set(payload) == {"stage", "stage_percent", "percent"}
        and isinstance(payload["stage"], str)
        and all(isinstance(payload[key], int) and 0 <= payload[key] <= 100 for key in ("stage_percent", "percent"))
    )


def test_result_arrives_after_a_server_error(platform: FakePlatform, short: bytes) -> None:
    url = platform.serve("again.flac", short)
    platform.fail_next_done([500])
    final = _done(platform, {"audio": url})
    _output(final)
    answers = [post.answered for post in platform.posts(final.job_id) if post.is_final]
    assert answers == [500, 200]


def test_an_answer_too_large_gives_up_words_then_is_packed_then_is_an_error(
    start_worker: StartWorker, clip: bytes, a_minute: bytes
) -> None:
    platform = start_worker(RESULT_LIMIT_MB=f"{SMALL_ANSWER / 1e6}", LOG_TAIL_LINES="0").platform
    clip_url, minute_url = platform.serve("clip.ogg", clip), platform.serve("minute.flac", a_minute)
    _check_words_dropped(_small(_done(platform, {"audio": clip_url, "align_output": True})))
    _check_packed(_small(_done(platform, {"audio": minute_url, "align_output": True})))
    every_format = {"output_formats": ["srt", "vtt", "tsv", "txt"]}
    _check_refusal(_done(platform, {"audio": clip_url, **every_format}), ("result_too_large",))


def _small(post: Post) -> dict[str, Any]:
    """An answer that keeps to the limit."""
    output = _output(post)
    assert len(json.dumps(output, ensure_ascii=False).encode()) <= SMALL_ANSWER
    return output


def _check_words_dropped(output: dict[str, Any]) -> None:
    assert output["segments"]
    assert not any(segment.get("words") for segment in output["segments"])
    assert any("words" in warning for warning in output["warnings"]), output["warnings"]


def _check_packed(output: dict[str, Any]) -> None:
    segments = json.loads(gzip.decompress(base64.b64decode(output["segments_gz"])))
    assert "segments" not in output
    assert len(segments) == output["segments_count"] > 0
    assert all(segment["start"] < segment["end"] and segment["text"] for segment in segments)
    assert any("segments_gz" in warning for warning in output["warnings"]), output["warnings"]


def test_dead_engine_fails_one_job(start_worker: StartWorker, short: bytes, half_an_hour: bytes) -> None:
    worker = start_worker()
    platform = worker.platform
    job_id = _long_job(worker, half_an_hour)
    worker.engine().kill()
    _check_refusal(platform.wait_final(job_id, 60), ("engine_crashed",))
    _output(_done(platform, {"audio": platform.serve("next.flac", short)}))
    assert worker.left_in_work_dir() == []


def test_what_was_said_is_not_logged(worker: Worker, finished: Post) -> None:
    output = _output(finished)
    said = [segment["text"] for segment in output["segments"]]
    assert said
    for text in said:
        assert text not in worker.log() + worker.output() + str(output["logs"])


def test_secrets_stay_secret(worker: Worker, short: bytes) -> None:
    platform = worker.platform
    token, signature = "hf_TokenOfTheCaller0123456789", "SignatureOfTheUrl0123456789"
    good = platform.serve("secret.flac", short)
    missing = platform.serve("secret-missing.ogg", b"", status=404)
    text = platform.serve("secret-text.ogg", b"no music\n" * 500)
    for url in (good, missing, text):
        _done(platform, {"audio": f"{url}?sig={signature}", "hf_token": token, "diarization": True, "debug": True})
    _done(platform, {"audio": f"{good}?sig={signature}", "hf_token": token, "diarisation": True})
    _done(platform, {"audio": f"{good}?sig={signature}", "huggingface_access_token": [token]})
    _done(platform, {"audio_base64": f"{good}?sig={signature}", "hf_token": token})
    for secret in (token, signature):
        assert platform.places_with(secret) == []
        assert secret not in worker.log()
        assert secret not in worker.output()

"""The jobs API over a real connection: what is sent, what comes back, and who may see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fake_runner import FakeRunner, Play

from hansard import joblog, render
from hansard.errors import AudioError
from hansard.server import native, waiting
from hansard.transcript import Transcript

if TYPE_CHECKING:
    from conftest import Serve, Server

pytestmark = pytest.mark.timeout(60)

URL = "https://example.com/meeting.mp3"


def sent(server: Server, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    """A job as the server took it."""
    answer = server.http.post("/v1/jobs", json={"audio": URL, **fields}, headers=headers)
    assert answer.status_code == 202, answer.text
    told: dict[str, Any] = answer.json()
    return told


def ended(server: Server, job_id: str) -> dict[str, Any]:
    """A job in its final state; its events end with that."""
    return events(server, job_id)[-1][1]


def events(server: Server, job_id: str, **headers: str) -> list[tuple[str, dict[str, Any]]]:
    """All events of a job: their names and what they tell."""
    with server.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        return list(parsed(stream.iter_lines()))


def parsed(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_a_job_by_url(server: Server, runner: FakeRunner) -> None:
    answer = server.http.post("/v1/jobs", json={"audio": URL, "diarization": True, "metadata": {"meeting": 7}})
    job = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job['id']}")
    assert (job["state"] in ("queued", "running", "completed"), job["metadata"]) == (True, {"meeting": 7})
    last = ended(server, job["id"])
    assert (last["state"], last["percent"], last["error"], last["position"]) == ("completed", 100, None, None)
    assert last["created"] <= last["started"] <= last["finished"]
    asked = runner.calls[0].request
    assert (asked.audio, asked.diarization, runner.calls[0].recording) == (URL, True, None)


def test_a_job_by_upload_has_its_fields_from_text(server: Server, runner: FakeRunner) -> None:
    fields = {
        "diarize": "true",
        "num_speakers": "2",
        "output_formats": ["srt", "rttm"],
        "vad_onset": "0.6",
        "language": "",
        "metadata": '{"a": [1]}',
    }
    answer = server.http.post("/v1/jobs", data=fields, files={"file": ("a b.wav", b"sound", "audio/wav")})
    assert answer.status_code == 202, answer.text
    last = ended(server, answer.json()["id"])
    asked = runner.calls[0].request
    assert (asked.diarization, asked.num_speakers, asked.vad_onset) == (True, 2, 0.6)
    assert (asked.output_formats, asked.language, runner.calls[0].content) == (["srt", "rttm"], None, b"sound")
    assert last["metadata"] == {"a": [1]}
    assert not list(server.core.uploads.iterdir())


def test_the_result_in_every_format(server: Server) -> None:
    job = sent(server, diarization=True, align_output=True, output_formats=["txt"], debug=True)
    ended(server, job["id"])
    address = f"/v1/jobs/{job['id']}/result"
    result = server.http.get(address).json()
    assert [segment["text"] for segment in result["segments"]] == ["good morning", "hello"]
    assert result["segments"][0]["words"][1] == {
        "word": "morning",
        "start": 1,
        "end": 2,
        "score": 0.8,
        "speaker": "SPEAKER_00",
    }
    assert (result["speakers"], result["warnings"]) == (["SPEAKER_00", "SPEAKER_01"], ["this was made up"])
    assert (result["txt"], result["logs"]) == (
        "SPEAKER_00: good morning\n\nSPEAKER_01: hello\n",
        ["stage transcribe took 0.250 s"],
    )
    starts = {
        "srt": ("1\n00:00:00,500 -->", "application/x-subrip; charset=utf-8"),
        "vtt": ("WEBVTT\n", "text/vtt; charset=utf-8"),
        "txt": ("SPEAKER_00: good", "text/plain; charset=utf-8"),
        "text": ("SPEAKER_00: good", "text/plain; charset=utf-8"),
        "tsv": ("start\tend\t", "text/tab-separated-values; charset=utf-8"),
        "rttm": ("SPEAKER rec", "text/plain; charset=utf-8"),
    }
    for name, (start, kind) in starts.items():
        text = server.http.get(address, params={"format": name})
        assert text.text.startswith(start), name
        assert text.headers["content-type"] == kind


def test_the_result_in_openais_shapes(server: Server) -> None:
    job = sent(server, diarization=True, align_output=True)
    ended(server, job["id"])
    address = f"/v1/jobs/{job['id']}/result"
    verbose = server.http.get(address, params={"format": "verbose_json"})
    assert verbose.headers["content-type"] == "application/json"
    told = verbose.json()
    assert (told["language"], told["text"], len(told["words"])) == ("english", "good morning hello", 3)
    assert [segment["speaker"] for segment in told["segments"]] == ["SPEAKER_00", "SPEAKER_01"]
    told = server.http.get(address, params={"format": "diarized_json"}).json()
    assert [(segment["id"], segment["speaker"]) for segment in told["segments"]] == [("seg_0", "A"), ("seg_1", "B")]


def test_openais_shape_of_a_job_without_text(server: Server) -> None:
    job = sent(server, task="diarization")
    ended(server, job["id"])
    told = server.http.get(f"/v1/jobs/{job['id']}/result", params={"format": "verbose_json"}).json()
    assert (told["task"], told["num_speakers"], len(told["speakers"])) == ("diarization", 2, 2)


@pytest.mark.parametrize(
    ("fields", "format"),
    [
        ({}, "rttm"),
        ({}, "diarized_json"),
        ({"task": "diarization"}, "srt"),
        ({"task": "diarization"}, "text"),
        ({"task": "diarization"}, "diarized_json"),
    ],
)
def test_a_format_that_the_job_has_not_is_refused(serve: Serve, fields: dict[str, Any], format: str) -> None:
    empty = Transcript((), (), "en", None, 1.0, "fake", {})
    server = serve(FakeRunner(otherwise=Play(empty)))
    job = sent(server, **fields)
    ended(server, job["id"])
    answer = server.http.get(f"/v1/jobs/{job['id']}/result", params={"format": format})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported")
    assert answer.json()["error"]["param"] == "format"


def test_what_is_not_finished_has_no_result(server: Server, runner: FakeRunner) -> None:
    gate = runner.gated()
    job = sent(server)
    answer = server.http.get(f"/v1/jobs/{job['id']}/result")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_not_finished")
    assert answer.headers["x-should-retry"] == "false"
    gate.set()
    ended(server, job["id"])
    assert server.http.get(f"/v1/jobs/{job['id']}/result").status_code == 200


def test_a_failed_job_says_why(server: Server, runner: FakeRunner) -> None:
    runner.plays.append(Play(AudioError("this recording cannot be used")))
    job = ended(server, sent(server)["id"])
    assert (job["state"], job["error"]) == ("failed", {"code": "bad_audio", "message": "this recording cannot be used"})
    answer = server.http.get(f"/v1/jobs/{job['id']}/result")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_audio")


def test_progress_then_the_end(server: Server, runner: FakeRunner) -> None:
    gate = runner.gated(reports=(("fetch", 1.0), ("transcribe", 0.5)))
    job_id = sent(server)["id"]
    seen = []
    with server.http.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        for name, told in parsed(stream.iter_lines()):
            seen.append((name, told["state"], told["percent"]))
            if told["stage"] == "transcribe":
                gate.set()
    assert seen[-1] == ("completed", "completed", 100)
    assert {name for name, _, _ in seen[:-1]} == {"progress"}
    assert [percent for _, _, percent in seen] == sorted(percent for _, _, percent in seen)


def test_events_of_an_ended_job_are_one_and_then_no_more(server: Server) -> None:
    job_id = sent(server)["id"]
    ended(server, job_id)
    assert [name for name, _ in events(server, job_id)] == ["completed"]
    again = server.http.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "completed"})
    assert again.status_code == 204
    assert [name for name, _ in events(server, job_id, **{"Last-Event-ID": "progress"})] == ["completed"]


def test_events_tell_of_the_queue_and_keep_the_connection(
    server: Server, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that waits hears nothing from the engine: its place is looked at, and comments go out in between."""
    monkeypatch.setattr(native, "LOOK_S", 0.02)
    monkeypatch.setattr(waiting, "HEARTBEAT_S", 0.02)
    gates = [runner.gated(), runner.gated()]
    sent(server)
    sent(server, language="en")
    last = sent(server, language="fr")["id"]
    places, comments = [], 0
    with server.http.stream("GET", f"/v1/jobs/{last}/events") as stream:
        for line in stream.iter_lines():
            comments += line.startswith(":")
            if line.startswith("data: "):
                places.append(json.loads(line.removeprefix("data: "))["position"])
            if places and comments:
                gates[0].set()
            if 0 in places:
                gates[1].set()
    assert places[:2] == [1, 0]
    assert places[-1] is None


def test_jobs_are_listed_newest_first_and_by_state(server: Server, runner: FakeRunner) -> None:
    first = sent(server)["id"]
    ended(server, first)
    gate = runner.gated()
    second = sent(server, language="en")["id"]
    third = sent(server, language="fr")["id"]

    def listed(**query: Any) -> list[str]:
        return [job["id"] for job in server.http.get("/v1/jobs", params=query).json()["jobs"]]

    assert listed() == [third, second, first]
    assert listed(limit=1) == [third]
    assert listed(state="completed", limit=1) == [first]
    assert listed(state="failed") == []
    gate.set()
    ended(server, third)
    assert listed(limit=2, state="completed") == [third, second]


def test_deleting_stops_and_forgets(server: Server, runner: FakeRunner) -> None:
    runner.gated()
    running, queued = sent(server)["id"], sent(server, language="en")["id"]
    for job_id in (queued, running):
        assert server.http.delete(f"/v1/jobs/{job_id}").status_code == 204
        assert server.http.get(f"/v1/jobs/{job_id}").status_code == 404
        assert server.http.delete(f"/v1/jobs/{job_id}").status_code == 404
    assert len(runner.calls) <= 1, "a deleted job was begun"
    assert runner.stopped == [call.job_id for call in runner.calls]


def test_an_idempotency_key_makes_one_job(server: Server, runner: FakeRunner) -> None:
    key = {"Idempotency-Key": "order-1"}
    first = sent(server, key, metadata={"a": 1})
    ended(server, first["id"])
    assert sent(server, key, metadata={"a": 1})["id"] == first["id"]
    assert len(runner.calls) == 1
    other = server.http.post("/v1/jobs", json={"audio": URL, "metadata": {"a": 2}}, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (400, "invalid_request")
    assert sent(server, {"Idempotency-Key": "order-2"}, metadata={"a": 1})["id"] != first["id"]


def test_the_same_upload_is_one_job_while_it_is_in_flight(server: Server, runner: FakeRunner) -> None:
    gate = runner.gated()

    def send() -> str:
        job_id: str = server.http.post("/v1/jobs", files={"file": b"sound"}).json()["id"]
        return job_id

    first = send()
    assert send() == first
    assert len(list(server.core.uploads.iterdir())) == 1
    gate.set()
    ended(server, first)
    assert send() != first


def test_callers_see_their_own_jobs(serve: Serve) -> None:
    server = serve(api_keys=("one", "two"))
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    job_id = sent(server, one)["id"]
    assert server.http.get(f"/v1/jobs/{job_id}", headers=one).status_code == 200
    for method, address in (("GET", ""), ("GET", "/result"), ("GET", "/events"), ("DELETE", "")):
        told = server.http.request(method, f"/v1/jobs/{job_id}{address}", headers=two)
        assert (told.status_code, told.json()["error"]["code"]) == (404, "job_not_found")
        assert server.http.request(method, f"/v1/jobs/{job_id}{address}").status_code == 401
    assert server.http.get("/v1/jobs", headers=two).json() == {"jobs": []}
    assert server.http.post("/v1/jobs", json={"audio": URL}).status_code == 401


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"json": {}}, "audio is missing"),
        ({"json": {"audio": URL, "diarise": True}}, "did you mean diarize"),
        ({"json": {"audio": URL, "num_speakers": "2"}}, "num_speakers"),
        ({"json": {"input": {"audio": URL}}}, "input is not a field"),
        ({"json": {"audio": URL, "webhook": 5}}, "webhook"),
        ({"json": {"audio": URL, "webhook": "ftp://example.com/"}}, "neither an http nor an https"),
        ({"json": {"audio": URL, "metadata": "x"}}, "metadata must be a JSON object"),
        ({"json": {"audio": URL, "metadata": [1]}}, "metadata must be a JSON object"),
        ({"json": {"audio": URL, "metadata": {"a": "x" * 20_000}}}, "metadata is larger"),
        ({"files": {"file": b"x"}, "data": {"audio_url": URL}}, "as a file and as audio_url"),
        ({"files": {"audio": b"x"}}, "send one recording, as file"),
        ({"files": {"file": b"x", "other": b"y"}}, "other"),
        ({"files": {"file": b"x"}, "data": {"num_speakers": ["1", "2"]}}, "num_speakers"),
        ({"files": {"file": b"x"}, "data": {"num_speakers": "two"}}, "num_speakers"),
        ({"files": {"file": b"x"}, "data": {"metadata": "{"}}, "metadata must be a JSON object"),
        ({"files": {"file": b"x"}, "data": {"metadata": '{"a": NaN}'}}, "that JSON has not"),
        ({"files": {"file": b"x"}, "data": {"metadata": '{"a": "\\ud800"}'}}, "that JSON has not"),
        ({"files": {"file": b"x"}, "data": {"metadata": '{"a": ' + "[" * 40 + "]" * 40 + "}"}}, "32 levels"),
        ({"files": {"file": b"x"}, "data": {"metadata": '{"a": ' + "[" * 9000 + "]" * 9000 + "}"}}, "metadata"),
    ],
)
def test_what_makes_no_job_is_refused_and_leaves_nothing(server: Server, body: dict[str, Any], told: str) -> None:
    answer = server.http.post("/v1/jobs", **body)
    assert answer.status_code == 400, answer.text
    assert told in answer.json()["error"]["message"]
    assert not list(server.core.uploads.iterdir())
    assert server.http.get("/v1/jobs").json() == {"jobs": []}


def test_a_full_queue_says_when_to_come_again(serve: Serve, runner: FakeRunner) -> None:
    server = serve(max_queue=1)
    runner.gated()
    first = sent(server)["id"]
    with server.http.stream("GET", f"/v1/jobs/{first}/events") as stream:
        for _, told in parsed(stream.iter_lines()):
            if told["state"] == "running":
                break
    sent(server, language="en")
    answer = server.http.post("/v1/jobs", json={"audio": URL, "language": "fr"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert int(answer.headers["Retry-After"]) >= 1


def test_results_outlive_a_restart(serve: Serve) -> None:
    first = serve()
    job_id = sent(first)["id"]
    ended(first, job_id)
    first.stop()
    assert serve().http.get(f"/v1/jobs/{job_id}/result").json()["segments"][1]["text"] == "hello"


def test_a_follower_who_leaves_costs_nothing(server: Server, runner: FakeRunner) -> None:
    gate = runner.gated()
    job_id = sent(server)["id"]
    with httpx.Client(base_url=server.url, trust_env=False) as other, other.stream("GET", f"/v1/jobs/{job_id}/events"):
        pass
    gate.set()
    assert ended(server, job_id)["state"] == "completed"


def test_openapi_tells_the_body_and_the_answers(server: Server) -> None:
    told = server.http.get("/openapi.json").json()
    post = told["paths"]["/v1/jobs"]["post"]
    content = post["requestBody"]["content"]
    assert {"audio", "webhook", "metadata"} <= set(content["application/json"]["schema"]["properties"])
    upload = content["multipart/form-data"]["schema"]
    assert "audio" not in upload["properties"]
    assert upload["properties"]["file"]["format"] == "binary"
    assert post["responses"]["202"]["content"]["application/json"]["schema"]["$ref"].endswith("/JobView")
    assert "$defs" not in json.dumps(told)
    result = told["paths"]["/v1/jobs/{job_id}/result"]["get"]
    names = result["parameters"][-1]["schema"]["enum"]
    assert set(names) == {"json", "verbose_json", "diarized_json", "text", *render.FORMATS}
    kinds = {kind.split(";")[0] for kind in render.MEDIA.values()}
    assert set(result["responses"]["200"]["content"]) == {"application/json", *kinds}


def test_strangers_do_not_see_each_others_jobs_listed(serve: Serve) -> None:
    server = serve(allow_anonymous=True)
    job_id = server.http.post("/v1/jobs", json={"audio": URL}).json()["id"]
    assert server.http.get("/v1/jobs").json() == {"jobs": []}
    assert server.http.get(f"/v1/jobs/{job_id}").status_code == 200
    refused = server.http.post("/v2/x/purge-queue")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")


def test_a_jobs_own_token_is_in_hand_while_it_runs(server: Server, runner: FakeRunner) -> None:
    gate = runner.gated()
    token = "a-token-of-no-known-shape"
    job_id = server.http.post("/v1/jobs", json={"audio": URL, "hf_token": token}).json()["id"]
    assert token in joblog.secrets_in_hand()
    gate.set()
    while server.http.get(f"/v1/jobs/{job_id}").json()["state"] != "completed":
        pass
    assert token not in joblog.secrets_in_hand()

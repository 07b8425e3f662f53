"""The log and the tail of a job: only its own lines, not too many, and never a secret."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hansard import joblog
from hansard.joblog import JOB_FIELD, JobLog, redact, secrets_in_hand
from hansard.settings import Settings

log = logging.getLogger("hansard.test")

MakeLog = Callable[..., JobLog]


@pytest.fixture
def make_log(tmp_path: Path) -> Iterator[MakeLog]:
    """A maker of logs that write to `tmp_path/log.txt`; afterwards the root logger is as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def make(*, echo: bool = False, **settings: Any) -> JobLog:
        return JobLog(Settings(**{"log_file": tmp_path / "log.txt", **settings}), echo=echo)

    yield make
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def texts(lines: Any) -> list[str]:
    """What lines of a log say, without time, level and logger."""
    return [line.split(" hansard.test ", 1)[-1] for line in lines]


def written(folder: Path) -> str:
    return (folder / "log.txt").read_text()


# Whose line is it


def test_a_tail_holds_the_lines_of_its_job(make_log: MakeLog, tmp_path: Path) -> None:
    job_log = make_log()
    log.info("before")
    with job_log.job("a") as tail:
        log.info("one %s", "and a half")
        log.debug("not this one")
        log.warning("two")
    log.info("after")
    assert texts(tail.lines) == ["one and a half", "two"]
    assert [line.split()[2] for line in tail.lines] == ["INFO", "WARNING"]
    assert texts(written(tmp_path).splitlines()) == ["before", "one and a half", "two", "after"]


@pytest.mark.parametrize("lines", [0, 1, 3])
def test_a_tail_has_at_most_so_many_lines(make_log: MakeLog, lines: int) -> None:
    with make_log(log_tail_lines=lines).job("a") as tail:
        for number in range(5):
            log.info("%d", number)
    assert texts(tail.lines) == ["0", "1", "2", "3", "4"][5 - lines :]


def test_lines_are_counted_not_records(make_log: MakeLog) -> None:
    with make_log(log_tail_lines=2).job("a") as tail:
        log.info("one\ntwo\nthree")
    assert texts(tail.lines) == ["two", "three"]


def test_records_of_the_engine_process_go_to_the_job_they_name(make_log: MakeLog) -> None:
    job_log = make_log()
    with job_log.job("a") as a:
        with job_log.job("b") as b:
            log.info("to a", extra={JOB_FIELD: "a"})
            log.info("to b", extra={JOB_FIELD: "b"})
            log.info("to nobody", extra={JOB_FIELD: "gone"})
            log.info("to whom it was made", extra={JOB_FIELD: None})
        log.info("a again")
    assert texts(a.lines) == ["to a", "a again"]
    assert texts(b.lines) == ["to b", "to whom it was made"]


def test_records_from_a_thread_without_a_job_reach_the_one_they_name(make_log: MakeLog) -> None:
    with make_log().job("a") as tail:
        reader = threading.Thread(target=lambda: (log.info("no"), log.info("yes", extra={JOB_FIELD: "a"})))
        reader.start()
        reader.join()
    assert texts(tail.lines) == ["yes"]


def test_two_jobs_at_once_do_not_mix(make_log: MakeLog) -> None:
    job_log = make_log(log_tail_lines=1000)

    async def run(name: str) -> list[str]:
        with job_log.job(name) as tail:
            for step in range(10):
                log.info("%s task %d", name, step)
                await asyncio.sleep(0)
                await asyncio.to_thread(log.info, "%s thread %d", name, step)
            return texts(tail.lines)

    async def both() -> list[list[str]]:
        return await asyncio.gather(run("a"), run("b"))

    for name, lines in zip("ab", asyncio.run(both()), strict=True):
        assert lines == [f"{name} {kind} {step}" for step in range(10) for kind in ("task", "thread")]


def test_a_job_that_fails_leaves_no_trace(make_log: MakeLog) -> None:
    job_log = make_log()
    tails = []

    def fail() -> None:
        with job_log.job("a") as tail:
            tails.append(tail)
            log.info("once")
            raise RuntimeError

    for _ in range(2):
        with pytest.raises(RuntimeError):
            fail()
    log.info("later", extra={JOB_FIELD: "a"})
    log.info("later")
    assert [texts(tail.lines) for tail in tails] == [["once"], ["once"]]


def test_a_second_job_of_the_same_name_takes_nothing_from_the_first(make_log: MakeLog) -> None:
    job_log = make_log()
    with job_log.job("a") as first:
        first.secrets = ("opensesame",)
        with job_log.job("a"):  # refused by the engine, and over at once
            pass
        log.info("opensesame", extra={JOB_FIELD: "a"})
    assert texts(first.lines) == ["***"]


def test_a_message_that_cannot_be_formatted_fails_no_job(make_log: MakeLog, capfd: pytest.CaptureFixture[str]) -> None:
    with make_log().job("a") as tail:
        log.info("%d", "not a number")
        log.info("next")
    assert texts(tail.lines)[-1:] == ["next"]
    capfd.readouterr()  # the standard library reports it there


# Secrets

SECRET_LINES = {
    "token hf_AbCdEf0123 was used": "token hf_*** was used",
    "'hf_AbCdEf0123'": "'hf_***'",
    "hf_token is a field": "hf_token is a field",
    "Authorization: Bearer abcdefgh12345": "Authorization: ***",
    "{'Authorization': 'Bearer abcdefgh12345'}": "{'Authorization': '***'}",
    "sent bearer ABCDEFGH.ijkl_mnop": "sent bearer ***",
    "Authorization: Basic YTpi": "Authorization: ***",
    "{'authorization': 'Basic dXNlcjpwYXNz'}": "{'authorization': '***'}",
    "a basic token is enough": "a basic token is enough",
    "api_key=abcdefgh12345, next": "api_key=***, next",
    "https://me:pass@example.com/a.mp3": "https://***@example.com/a.mp3",
    "s3://key@bucket/a": "s3://***@bucket/a",
    "ftp://me:p:a:s:s@example.com": "ftp://***@example.com",
    "https://me:p@ss@example.com/a": "https://***@example.com/a",
    "https://example.com/a.mp3?X-Amz-Signature=abc&y=1 failed": "https://example.com/a.mp3?*** failed",
    "https://example.com/a#access_token=abc": "https://example.com/a?***",
    "HTTPS://me:pass@example.com/a?b": "HTTPS://***@example.com/a?***",
    "write to me@example.com": "write to me@example.com",
    "https://example.com/a.mp3 took 3 s": "https://example.com/a.mp3 took 3 s",
    "what? nothing": "what? nothing",
}


@pytest.mark.parametrize(("line", "expected"), SECRET_LINES.items())
def test_what_looks_like_a_secret_is_taken_out(
    line: str, expected: str, make_log: MakeLog, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with make_log(echo=True).job("a") as tail:
        log.info("%s", line)
    assert texts(tail.lines) == [expected]
    assert texts(written(tmp_path).splitlines()) == [expected]
    assert texts(capfd.readouterr().err.splitlines()) == [expected]


def test_a_secret_that_begins_another_leaves_nothing_of_it() -> None:
    assert redact("it was open-sesame-street", ["open-sesame", "open-sesame-street"]) == "it was ***"


PIECES = ["https://", "a.", "a://", "token=", 'token"', "hf_", "https://a@", "authorization: ", "basic "]


@pytest.mark.parametrize("piece", PIECES)
def test_the_time_grows_with_the_text_alone(piece: str) -> None:
    """Whoever writes it: sixteen times as much text takes about sixteen times as long, not 256 times."""

    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        return min(_timed(text) for _ in range(3))

    def _timed(text: str) -> float:
        begin = time.process_time()
        redact(text, ())
        return time.process_time() - begin

    assert seconds(320_000) < 80 * max(seconds(20_000), 0.0005)


def test_the_server_knows_what_its_jobs_brought() -> None:
    joblog.register("a", ["open sesame", "x"])
    joblog.register("b", ["x"])
    try:
        assert secrets_in_hand() == {"open sesame"}
    finally:
        joblog.forget("a")
        joblog.forget("a")
    assert secrets_in_hand() == set()


def test_of_too_many_jobs_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblog, "MOST_IN_HAND", 2)
    for number in range(4):
        joblog.register(str(number), [f"the secret {number}"])
    assert secrets_in_hand() == {"the secret 2", "the secret 3"}
    for number in range(4):
        joblog.forget(str(number))


def test_the_secrets_of_a_job_are_taken_out_everywhere(
    make_log: MakeLog, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job_log = make_log(echo=True)
    with job_log.job("a") as a, job_log.job("b") as b:
        a.secrets = ("open sesame", "x.*y")
        b.secrets = ("abracadabra",)
        for job in ("a", "b"):
            log.info("open sesame x.*y xxy abracadabra", extra={JOB_FIELD: job})
    expected = ["*** *** xxy ***"]
    assert texts(a.lines) == texts(b.lines) == expected
    assert texts(written(tmp_path).splitlines()) == expected * 2
    assert texts(capfd.readouterr().err.splitlines()) == expected * 2


def test_a_secret_is_forgotten_with_its_job(make_log: MakeLog) -> None:
    job_log = make_log()
    with job_log.job("a") as first:
        first.secrets = ("sesame",)
    with job_log.job("b") as tail:
        log.info("sesame seeds")
    assert texts(tail.lines) == ["sesame seeds"]


def test_tracebacks_hold_no_secrets(make_log: MakeLog, tmp_path: Path) -> None:
    job_log = make_log()
    token, query = "sesame" + "street", "Signature=" + "abc"  # in pieces: a traceback quotes its source
    error = ConnectionError(f"https://me:pass@host/a?{query} refused {token} and hf_{token}")

    def fail() -> None:
        raise error

    with job_log.job("a") as tail:
        tail.secrets = (token,)
        try:
            fail()
        except ConnectionError:
            log.exception("failed")
    for text in ("\n".join(tail.lines), written(tmp_path)):
        assert "Traceback" in text
        assert "ConnectionError: https://***@host/a?*** refused *** and hf_***" in text
        assert token not in text
        assert query not in text
        assert "me:pass" not in text


# The file


def test_the_file_is_rotated_and_its_size_bounded(make_log: MakeLog, tmp_path: Path) -> None:
    """Up to one line: the standard library counts the line to come in characters, not bytes."""
    make_log(log_file_mb=0.01)
    for number in range(1000):
        log.info("line %d %s", number, "é" * 40)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["log.txt", "log.txt.1"]
    assert all(path.stat().st_size <= 10_000 + 200 for path in tmp_path.iterdir())
    assert "line 999 " in written(tmp_path)


def test_a_log_of_an_earlier_run_is_continued(make_log: MakeLog, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("earlier\n")
    make_log()
    log.info("later")
    assert texts(written(tmp_path).splitlines()) == ["earlier", "later"]


def test_without_a_file_the_log_goes_to_standard_error(
    make_log: MakeLog, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with make_log(echo=True, log_file=tmp_path).job("a") as tail:
        log.info("still here")
    warning, line = capfd.readouterr().err.splitlines()
    assert "WARNING" in warning
    assert "LOG_FILE cannot be written (Is a directory): the log goes to standard error only" in warning
    assert str(tmp_path) not in warning
    assert texts([line]) == texts(tail.lines) == ["still here"]


def test_the_folder_of_the_file_may_be_missing(
    make_log: MakeLog, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_log(echo=True, log_file=tmp_path / "missing" / "log.txt")
    assert "LOG_FILE cannot be written (No such file or directory)" in capfd.readouterr().err


def test_without_echo_standard_error_stays_quiet(make_log: MakeLog, capfd: pytest.CaptureFixture[str]) -> None:
    with make_log().job("a"):
        log.error("hm")
    assert capfd.readouterr() == ("", "")


def test_a_new_log_takes_the_place_of_the_old(make_log: MakeLog, tmp_path: Path) -> None:
    make_log()
    old = list(logging.getLogger().handlers)
    make_log(log_file=tmp_path / "second.txt")
    log.info("once")
    assert not set(old) & set(logging.getLogger().handlers)
    assert (tmp_path / "second.txt").read_text().count("once") == 1
    for handler in old:
        handler.close()

"""What a server remembers: everything it was asked, nothing secret, and only one server at a time."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_runner import TRANSCRIPT

from hansard.errors import EngineError, SettingsError
from hansard.request import parse
from hansard.server.job import Job, Submission
from hansard.server.store import FILE, Store

TOKEN = "hf_secretsecret"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state")
    yield made
    made.close()


def job(name: str = "a", owner: str = "me", created: float = 1.0, **given: object) -> Job:
    submission = Submission(parse({"audio": "https://example.com/a.mp3"}), owner=owner, digest=f"sound-{name}")
    return Job(name, replace(submission, **given), "queued", created)  # type: ignore[arg-type]


def test_a_job_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    asked = parse(
        {
            "audio": "https://example.com/a.mp3",
            "diarization": True,
            "language": "en-GB",
            "vad_onset": 0.2,  # below the default of vad_offset, which only counts where it was given
            "speaker_verification": True,
            "speaker_samples": [{"name": "Eve", "audio": "AAAA"}],
        }
    )
    given = Submission(asked, tmp_path / "x.wav", "me", "d", "k", True, "https://example.com/hook", metadata={"n": [1]})
    made = Job("a", given, "running", 1.5, 2.5, None, "transcribe", 40.0, 20.0, ("unfit", "buy another"), 2)
    store.add(made)
    assert store.get("a") == made
    assert store.get("a").submission.request.model_fields_set == asked.model_fields_set  # type: ignore[union-attr]


def test_an_update_changes_what_may_change(store: Store) -> None:
    store.add(job())
    done = replace(job(), state="completed", finished=9.0, percent=100.0)
    store.complete(done, TRANSCRIPT)
    assert store.get("a") == done
    assert store.result("a") == TRANSCRIPT
    assert store.result("b") is None


def test_a_token_is_not_written(store: Store, tmp_path: Path) -> None:
    request = parse({"audio": "https://example.com/a.mp3", "hf_token": TOKEN})
    store.add(job(request=request))
    written = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir())
    assert b"example.com" in written
    assert TOKEN.encode() not in written
    assert store.get("a").submission.request.huggingface_access_token is not None  # type: ignore[union-attr]


def test_others_cannot_read_it(store: Store, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_the_newest_of_an_owner(store: Store) -> None:
    for made in (job("a", created=1.0), job("b", created=3.0), job("c", created=2.0), job("d", owner="you")):
        store.add(made)
    assert [found.id for found in store.newest("me", 2)] == ["b", "c"]
    assert [found.id for found in store.newest("you", 9)] == ["d"]


def test_the_unfinished_in_their_order(store: Store) -> None:
    states = {"a": "completed", "b": "running", "c": "failed", "d": "queued", "e": "cancelled"}
    for number, (name, state) in enumerate(states.items()):
        store.add(replace(job(name, created=9.0 - number), state=state))
    assert [found.id for found in store.unfinished()] == ["d", "b"]


def test_a_digest_is_of_one_owner_until_it_is_forgotten(store: Store) -> None:
    store.add(job("a"))
    assert store.by_digest("me", "sound-a") == job("a")
    assert store.by_digest("you", "sound-a") is None
    store.forget_digest("a")
    assert store.by_digest("me", "sound-a") is None
    store.add(job("b", digest=""))
    assert store.by_digest("me", "") is None


def test_a_key_is_of_one_owner(store: Store) -> None:
    store.add(job("a", idempotency_key="k"))
    store.add(job("b", owner="you", idempotency_key="k"))
    assert store.by_key("me", "k").id == "a"  # type: ignore[union-attr]
    assert store.by_key("you", "k").id == "b"  # type: ignore[union-attr]
    assert store.by_key("me", "other") is None


def test_what_ended_long_ago_is_forgotten(store: Store) -> None:
    for name, finished in {"old": 10.0, "new": 30.0, "open": None}.items():
        store.add(job(name))
        store.update(replace(job(name), finished=finished))
    assert store.expire(20.0) == 1
    assert {found.id for found in store.newest("me", 9)} == {"new", "open"}


def test_a_job_can_be_deleted(store: Store) -> None:
    store.add(job())
    store.complete(job(), TRANSCRIPT)
    store.delete("a")
    assert store.get("a") is None
    assert store.result("a") is None


def test_a_second_server_is_refused_until_the_first_is_gone(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="another server uses this STATE_DIR"):
        Store(tmp_path / "state")
    other = Store(tmp_path / "other")
    other.close()
    Store(tmp_path / "other").close()


def database(folder: Path, statement: str) -> None:
    """Do something to the file behind the server's back."""
    db = sqlite3.connect(folder / FILE)
    with db:
        db.execute(statement)
    db.close()


def test_a_row_of_another_version_costs_only_itself(store: Store, tmp_path: Path) -> None:
    store.add(job("a"))
    store.add(job("b"))
    database(tmp_path / "state", """UPDATE jobs SET submission = '{"request": {"tune": 1}}' WHERE id = 'a'""")
    assert [found.id for found in store.unfinished()] == ["b"]
    assert store.get("a") is None


def test_tables_of_another_version_are_refused_and_the_folder_let_go(tmp_path: Path) -> None:
    Store(tmp_path).close()
    database(tmp_path, "PRAGMA user_version=99")
    for _ in range(2):
        with pytest.raises(SettingsError, match="another version of the server"):
            Store(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(SettingsError, match="STATE_DIR cannot be used"):
        Store(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="STATE_DIR cannot be used"):
        Store(tmp_path / "file" / "state")


def test_a_disk_that_fails_is_an_error_that_says_so(store: Store, tmp_path: Path) -> None:
    database(tmp_path / "state", "DROP TABLE jobs")
    with pytest.raises(EngineError, match="STATE_DIR cannot be used"):
        store.add(job())

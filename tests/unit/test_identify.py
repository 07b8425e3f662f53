"""Voices to names: one name for one speaker, the best pairing of all, nobody named below the threshold."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from hansard.speakers.identify import MOST_ENROLMENTS, Enrolments, Match, identify, name_segments
from hansard.transcript import Float32, Segment

X, Y, Z = np.eye(3, dtype=np.float32)


def between(first: Float32, second: Float32, likeness: float) -> Float32:
    """A voice whose cosine with `first` is `likeness`, leaning to `second`."""
    return (likeness * first + np.sqrt(1 - likeness**2) * second).astype(np.float32)


def test_each_speaker_gets_the_name_of_the_voice() -> None:
    found = identify({"S0": Y * 7, "S1": X}, [("Alice", X), ("Bob", Y)], 0.5)
    assert found == {"S0": Match("Bob", pytest.approx(1.0)), "S1": Match("Alice", pytest.approx(1.0))}


@pytest.mark.parametrize(("likeness", "named"), [(0.59, False), (0.61, True)])
def test_below_the_threshold_nobody_is_named(likeness: float, named: bool) -> None:
    found = identify({"S0": between(X, Y, likeness)}, [("Alice", X)], 0.6)
    assert (found.get("S0") is not None) is named
    if named:
        assert found["S0"].similarity == pytest.approx(likeness, abs=1e-5)


def test_one_name_is_given_once() -> None:
    """Two speakers like Alice: she is the one who is more like her, the other stays without a name."""
    found = identify({"S0": between(X, Y, 0.8), "S1": between(X, Z, 0.9)}, [("Alice", X)], 0.5)
    assert list(found) == ["S1"]


def test_the_pairing_is_the_best_of_all() -> None:
    """Greedy would give S0 its best match and leave S1 with nothing."""
    voices = {"S0": between(X, Y, 0.72), "S1": between(X, Z, 0.7)}
    samples = [("Alice", X), ("Bob", between(Y, X, 0.8))]
    found = identify(voices, samples, 0.5)
    assert {speaker: match.name for speaker, match in found.items()} == {"S0": "Bob", "S1": "Alice"}


def test_the_sum_of_similarities_is_the_greatest_possible() -> None:
    chance = np.random.default_rng(1)
    for _ in range(20):
        voices = {f"S{i}": chance.normal(size=8).astype(np.float32) for i in range(3)}
        samples = [(f"N{i}", chance.normal(size=8).astype(np.float32)) for i in range(4)]
        unit = {name: v / np.linalg.norm(v) for name, v in [*voices.items(), *samples]}
        found = identify(voices, samples, 0.1)
        best = max(
            sum(likeness for s, n in zip(voices, names, strict=True) if (likeness := float(unit[s] @ unit[n])) >= 0.1)
            for names in itertools.permutations([name for name, _ in samples], 3)
        )
        assert sum(match.similarity for match in found.values()) == pytest.approx(best, abs=1e-5)


def test_two_weak_pairs_do_not_displace_a_strong_one() -> None:
    """A low threshold lets all pairs count: what matters is how alike they are, not how many."""
    likeness = np.array([[0.9, 0.35], [0.35, 0.1]])
    voices = {f"S{i}": np.append(row, np.eye(2)[i] * np.sqrt(1 - row @ row)) for i, row in enumerate(likeness)}
    samples = [("Alice", np.eye(4)[0].astype(np.float32)), ("Bob", np.eye(4)[1].astype(np.float32))]
    found = identify(voices, samples, 0.3)
    assert {speaker: match.name for speaker, match in found.items()} == {"S0": "Alice"}


def test_samples_of_one_name_count_together() -> None:
    found = identify({"S0": (X + Y).astype(np.float32)}, [("Alice", X), ("Alice", Y), ("Bob", between(X, Y, 0.8))], 0.5)
    assert found == {"S0": Match("Alice", pytest.approx(1.0))}


@pytest.mark.parametrize(("voices", "samples"), [({}, [("Alice", X)]), ({"S0": X}, [])])
def test_nobody_there_or_nobody_known(voices: dict[str, Float32], samples: list[tuple[str, Float32]]) -> None:
    assert identify(voices, samples, 0.5) == {}


def test_a_voice_of_nothing_is_like_nobody() -> None:
    assert identify({"S0": np.zeros(3, np.float32)}, [("Alice", X)], 0.1) == {}


def test_names_reach_the_segments_of_their_speaker() -> None:
    segments = (Segment(0, 1, "a", speaker="S0"), Segment(1, 2, "b", speaker="S1"), Segment(2, 3, "c"))
    named = name_segments(segments, {"S0": Match("Alice", 0.8)})
    assert [(s.speaker, s.speaker_id, s.similarity) for s in named] == [
        ("S0", "Alice", 0.8),
        ("S1", None, None),
        (None, None, None),
    ]


# Enrolments


class Ear:
    """Counts how often it listens."""

    def __init__(self, voice: Float32) -> None:
        self.voice, self.heard = voice, 0

    def __call__(self) -> Float32:
        self.heard += 1
        return self.voice


def sample(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_the_same_content_is_heard_once_whatever_it_is_called(tmp_path: Path) -> None:
    known, ear = Enrolments(), Ear(X)
    for name in ("a", "b"):
        assert known.get(sample(tmp_path, name, b"the same"), "model", ear) is X
    assert ear.heard == 1


def test_the_same_name_with_other_content_is_another_voice(tmp_path: Path) -> None:
    known = Enrolments()
    assert known.get(sample(tmp_path, "alice", b"one caller's"), "model", Ear(X)) is X
    assert known.get(sample(tmp_path, "alice", b"another's"), "model", Ear(Y)) is Y


def test_another_model_hears_anew(tmp_path: Path) -> None:
    known, path = Enrolments(), sample(tmp_path, "a", b"the same")
    assert known.get(path, "one", Ear(X)) is X
    assert known.get(path, "other", Ear(Y)) is Y


def test_a_sample_that_failed_is_not_remembered(tmp_path: Path) -> None:
    known, path = Enrolments(), sample(tmp_path, "a", b"x")

    def fail() -> Float32:
        raise LookupError

    with pytest.raises(LookupError):
        known.get(path, "model", fail)
    assert known.get(path, "model", Ear(X)) is X


def test_memory_is_bounded_and_forgets_the_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_ENROLMENTS > 100
    monkeypatch.setattr("hansard.speakers.identify.MOST_ENROLMENTS", 2)
    known, ears = Enrolments(), {name: Ear(X) for name in "abc"}
    for name in "abac":
        known.get(sample(tmp_path, name, name.encode()), "model", ears[name])
    for name in "ab":
        known.get(sample(tmp_path, name, name.encode()), "model", ears[name])
    assert {name: ear.heard for name, ear in ears.items()} == {"a": 1, "b": 2, "c": 1}

"""Make the two-voice clip of the tests: meeting.ogg, its truth meeting.json, and the top-level test_input.json.

Needs Debian's flite (voices rms and slt). The clip is committed, so nobody has to run this to test.
Run: .venv/bin/python tests/data/make_meeting.py
"""

import base64
import json
import subprocess
import tempfile
from pathlib import Path

import av
import numpy as np
import soundfile

HERE = Path(__file__).parent
RATE = 16_000
BEFORE, AFTER = 0.3, 0.4  # seconds of silence around each line

LINES = [
    ("rms", "good morning everyone and welcome to the weekly meeting"),
    ("slt", "i think that we should start with the report from the last quarter"),
    ("rms", "we need to talk about the new project and the budget for next year"),
    ("slt", "we will come back to this question at the next meeting on monday"),
]


def speak(voice: str, text: str) -> np.ndarray:
    """One line of speech, int16 at 16 kHz."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", file.name], check=True)
        samples, rate = soundfile.read(file.name, dtype="int16")
    assert rate == RATE
    return samples


def audible(samples: np.ndarray) -> tuple[float, float]:
    """From when to when the line can be heard, in seconds: above 1 % of its peak."""
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > np.abs(samples.astype(np.int32)).max() / 100)
    return float(loud[0] / RATE), float(loud[-1] / RATE)


def encode(samples: np.ndarray, path: Path) -> None:
    """Write Ogg Opus at 24 kbit/s, which keeps the clip small and the words clear."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=RATE, layout="mono")
        stream.bit_rate = 24_000
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def main() -> None:
    pieces, turns, now = [], [], 0.0
    for voice, text in LINES:
        line = speak(voice, text)
        first, last = audible(line)
        start = now + BEFORE
        turns.append({"speaker": voice, "start": round(start + first, 3), "end": round(start + last, 3), "text": text})
        pieces += [np.zeros(round(BEFORE * RATE), np.int16), line, np.zeros(round(AFTER * RATE), np.int16)]
        now = start + len(line) / RATE + AFTER
    clip = HERE / "meeting.ogg"
    encode(np.concatenate(pieces), clip)
    (HERE / "meeting.json").write_text(json.dumps({"duration": round(now, 3), "turns": turns}, indent=1) + "\n")
    uri = "data:audio/ogg;base64," + base64.b64encode(clip.read_bytes()).decode()
    job = {"input": {"audio": uri, "language": "en", "diarization": True, "align_output": True}}
    (HERE.parents[1] / "test_input.json").write_text(json.dumps(job, indent=1) + "\n")


if __name__ == "__main__":
    main()

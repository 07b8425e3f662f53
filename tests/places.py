"""Where things lie, for tests: the repository, its clips, and the shared recordings that may be absent."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
SHARED = ROOT.parent / "shared"
TINY = ROOT / "tests" / "models" / "tiny-synthetic"  # small models that understand CLIPS and little else
CLIPS = TINY / "clips"

"""The guard's rules, on texts alone: what a model invents is caught, what people say is not."""

import json

import pytest

from hansard.settings import Settings
from hansard.transcribers.guard import Fault, Heard, Limits, compression_ratio, fault, letters, loops
from places import ROOT

LIMITS = Limits(no_speech=0.6, logprob=-1.0, compression=2.4)
SENTENCE = "The next meeting is on Friday at two."


def judge(
    text: str,
    *,
    logprob: float = -0.2,
    no_speech: float = 0.0,
    seconds: float = 10.0,
    speech: float | None = None,
    ended: bool = True,
) -> Fault | None:
    return fault(Heard(text, logprob, no_speech, seconds, seconds if speech is None else speech, ended), LIMITS)


def test_an_ordinary_sentence_stands() -> None:
    assert judge(SENTENCE) is None


def test_everything_said_in_the_clips_stands() -> None:
    turns = [
        turn
        for path in sorted((ROOT / "tests/models/tiny-synthetic/clips").glob("*.json"))
        for turn in json.loads(path.read_text())["turns"]
    ]
    assert len(turns) > 80
    assert all(judge(turn["text"], seconds=turn["end"] - turn["start"]) is None for turn in turns)


@pytest.mark.parametrize(
    "text",
    [
        "Thank you. " * 20,
        "you you you you you you you you",
        "so I said to him, so I said to him, so I said to him, so I said to him",
        "Спасибо. " * 10,
        "ご視聴ありがとうございました" * 4,
        "啊" * 40,
        "The budget is late. " + "the report is late and the report is late and " * 3,
        "A" * 60,
        "I see" + "." * 40,
    ],
)
def test_loops_are_repetition(text: str) -> None:
    assert loops(text)
    assert judge(text, seconds=30) is Fault.REPETITION


@pytest.mark.parametrize(
    "text",
    [
        "No, no, no, no.",
        "very very very very good",
        "one two three one two three",
        "He said that that was that, and that that was all that there was.",
        "1000000 and 2000000",
        "哈哈哈哈哈哈",
        "",
    ],
)
def test_emphasis_is_no_loop(text: str) -> None:
    assert not loops(text)


def test_repetition_without_a_loop_shows_in_the_compression_ratio() -> None:
    names = ("Anna", "Boris", "Claire", "David", "Elena", "Marco", "Nina", "Oscar", "Paul", "Rita")
    text = " ".join(f"Please subscribe to the channel of {name} and share this video." for name in names)
    assert not loops(text)
    assert compression_ratio(text) > LIMITS.compression
    assert judge(text, seconds=30) is Fault.REPETITION


HINDI = (
    "आज की बैठक में हम पिछले महीने की बिक्री और अगले साल के बजट पर बात करेंगे। पहले रमेश जी बताएँगे कि नए ग्राहकों से क्या"
    " सुझाव मिले हैं, फिर सीमा जी विज्ञापन के खर्च का हिसाब देंगी। उसके बाद हम तय करेंगे कि किस शहर में नया दफ़्तर खोला जाए"
    " और कितने लोग रखे जाएँ। अगर समय बचा तो छुट्टियों की सूची भी देख लेंगे, नहीं तो वह अगली बार के लिए छोड़ देंगे। सबसे ज़रूरी"
    " बात यह है कि हर काम के लिए एक ही व्यक्ति ज़िम्मेदार हो और तारीख़ लिखी जाए, ताकि बाद में किसी को शिकायत न रहे।"
)
RUSSIAN = (
    "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. Все смешалось в доме "
    "Облонских. Жена узнала, что муж был в связи с бывшею в их доме француженкою-гувернанткой, и объявила мужу, что не "
    "может жить с ним в одном доме. Положение это продолжалось уже третий день и мучительно чувствовалось и самими "
    "супругами, и всеми членами семьи, и домочадцами."
)


@pytest.mark.parametrize("text", [HINDI, RUSSIAN, RUSSIAN + HINDI])
def test_no_alphabet_and_no_length_passes_for_repetition(text: str) -> None:
    assert compression_ratio(text) < 2
    assert judge(text, seconds=30) is None


@pytest.mark.parametrize("said", ["धन्यवाद दोस्तों। ", "Спасибо за просмотр. ", "Thank you for watching. ", "谢谢观看。"])
def test_a_loop_in_the_midst_of_a_long_text_shows(said: str) -> None:
    assert compression_ratio(RUSSIAN + said * 40 + RUSSIAN) > 2.4


def test_too_many_words_for_the_time() -> None:
    long = "We moved the deadline of the marketing project from October to the second week of January."
    assert judge(long, seconds=6) is None
    assert judge(long, seconds=1) is Fault.DENSITY
    assert judge("Yes.", seconds=0.1) is None


def test_a_character_of_chinese_counts_for_several_letters() -> None:
    assert letters("预算") > letters("ab") == 2
    assert judge("我们把项目的截止日期从十月推迟到一月的第二个星期", seconds=5) is None
    assert judge("我们把项目的截止日期从十月推迟到一月的第二个星期", seconds=0.5) is Fault.DENSITY


@pytest.mark.parametrize(
    ("logprob", "no_speech", "expected"),
    [(-1.2, 0.1, Fault.DOUBT), (-1.2, 0.9, Fault.SILENCE), (-0.5, 0.9, None), (-0.99, 0.1, None)],
)
def test_no_speech_counts_only_where_the_words_are_doubtful(
    logprob: float, no_speech: float, expected: Fault | None
) -> None:
    assert judge(SENTENCE, logprob=logprob, no_speech=no_speech, speech=1.0) is expected


def test_a_model_that_hears_nobody_is_not_believed_where_somebody_speaks() -> None:
    assert judge(SENTENCE, logprob=-1.2, no_speech=0.9, speech=1.4) is Fault.SILENCE
    assert judge(SENTENCE, logprob=-1.2, no_speech=0.9, speech=1.6) is Fault.GAP


def test_a_text_without_an_end_is_at_fault_and_what_is_worse_comes_first() -> None:
    assert judge(SENTENCE, ended=False) is Fault.ENDLESS
    assert judge(SENTENCE, ended=False, logprob=-3.0) is Fault.ENDLESS
    assert judge(SENTENCE * 9, ended=False, seconds=30) is Fault.REPETITION


def test_no_words_are_silence_unless_somebody_speaks() -> None:
    assert judge("", speech=0.2) is Fault.SILENCE
    assert judge("", speech=8.0) is Fault.GAP
    assert judge("", speech=8.0, no_speech=0.9) is Fault.GAP


def test_the_thresholds_are_the_settings() -> None:
    settings = Settings(no_speech_threshold=0.3, logprob_threshold=-0.5, compression_ratio_threshold=1.0)
    assert Limits.of(settings) == Limits(no_speech=0.3, logprob=-0.5, compression=1.0)
    assert fault(Heard(SENTENCE, -0.6, 0.0, 10, 10), LIMITS) is None
    assert fault(Heard(SENTENCE, -0.6, 0.4, 10, 1), Limits.of(settings)) is Fault.SILENCE
    assert fault(Heard(SENTENCE * 2, -0.1, 0.0, 10, 10), Limits.of(settings)) is Fault.REPETITION

"""Every error a user can meet, as one tree; each class has a stable `code`, each instance a sentence.

    HansardError                internal             our bug: the log has the traceback
    ├── RequestError            invalid_request      the job asks for something that does not exist
    │   └── UnsupportedError    unsupported          ... or that the chosen backend cannot do
    ├── AudioError              bad_audio            the recording cannot be used
    │   ├── FetchError          fetch_failed         it could not be downloaded
    │   ├── RefusedUrlError     url_refused          it lies where this worker does not go
    │   ├── TooLargeError       audio_too_large      more bytes than MAX_AUDIO_MB
    │   ├── TooLongError        audio_too_long       more hours than MAX_AUDIO_HOURS
    │   ├── NotAudioError       not_audio            text, a web page, a picture
    │   ├── NoAudioStreamError  no_audio_stream      a container without sound
    │   ├── EmptyAudioError     empty_audio          zero bytes or zero seconds
    │   └── EncryptedError      encrypted_audio      protected by DRM
    ├── EngineError             engine_failed        the engine process could not do its work
    │   ├── EngineMissingError  engine_missing       a backend's package or weights are not installed
    │   ├── CrashedError        engine_crashed       the engine process died in mid-job
    │   ├── UnfitError          unfit                the machine or what is installed on it cannot do the work
    │   ├── OutOfMemoryError    out_of_memory        neither memory nor smaller batches were enough
    │   └── ServiceError        service_failed       the service that holds the model failed or refused the call
    ├── ModelError              model_unavailable    the model's weights cannot be had
    │   ├── TokenMissingError   token_missing        a gated model or a service, and no token or key was given
    │   ├── TokenRefusedError   token_refused        the model hub or the service does not know the token or the key
    │   ├── TermsError          terms_not_accepted   the token's owner has not accepted the model's terms
    │   ├── ModelMissingError   model_not_found      no such model, here or where it may be looked for
    │   └── HubError            hub_unreachable      the hub does not answer
    ├── SettingsError           invalid_settings     a variable of the environment cannot be used
    ├── AccessError             access_denied        the server does not know the caller's key
    │   └── ForbiddenError      forbidden            it knows the key, but not for this
    ├── RateError               rate_limited         more requests than RATE_LIMIT
    │   └── QueueFullError      queue_full           more jobs wait than MAX_QUEUE
    ├── JobMissingError         job_not_found        the server has no such job, or no longer
    ├── JobUnfinishedError      job_not_finished     the job has no result yet
    ├── CancelledError          cancelled            the caller no longer wants the job
    ├── TimeLimitError          timed_out            the job took longer than its caller allowed
    └── ResultTooLargeError     result_too_large     the answer does not fit the platform's limit

The core raises these and knows nothing of HTTP or RunPod; a door turns them into its own answer. Sentences
never hold a URL's query, a credential, a token or a path of the machine.
"""

from __future__ import annotations


class HansardError(Exception):
    """An error with a stable `code` and a sentence that tells the user what to do; `param` is the field it is about."""

    code = "internal"
    param: str | None = None

    def __init__(self, sentence: str, param: str | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.param = param or self.param

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"


class RequestError(HansardError):
    code = "invalid_request"


class UnsupportedError(RequestError):
    code = "unsupported"


class AudioError(HansardError):
    code = "bad_audio"


class FetchError(AudioError):
    code = "fetch_failed"


class RefusedUrlError(AudioError):
    code = "url_refused"


class TooLargeError(AudioError):
    code = "audio_too_large"


class TooLongError(AudioError):
    code = "audio_too_long"


class NotAudioError(AudioError):
    code = "not_audio"


class NoAudioStreamError(AudioError):
    code = "no_audio_stream"


class EmptyAudioError(AudioError):
    code = "empty_audio"


class EncryptedError(AudioError):
    code = "encrypted_audio"


class EngineError(HansardError):
    code = "engine_failed"


class EngineMissingError(EngineError):
    code = "engine_missing"


class CrashedError(EngineError):
    code = "engine_crashed"


class UnfitError(EngineError):
    code = "unfit"


class OutOfMemoryError(EngineError):
    code = "out_of_memory"


class ServiceError(EngineError):
    code = "service_failed"


class ModelError(HansardError):
    code = "model_unavailable"


class TokenMissingError(ModelError):
    code = "token_missing"


class TokenRefusedError(ModelError):
    code = "token_refused"


class TermsError(ModelError):
    code = "terms_not_accepted"


class ModelMissingError(ModelError):
    code = "model_not_found"
    param = "model"


class HubError(ModelError):
    code = "hub_unreachable"


class SettingsError(HansardError):
    code = "invalid_settings"


class AccessError(HansardError):
    code = "access_denied"


class ForbiddenError(AccessError):
    code = "forbidden"


class RateError(HansardError):
    """`retry_after_s` is in seconds; it does not survive the way as text."""

    code = "rate_limited"

    def __init__(self, sentence: str, retry_after_s: int = 30) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class QueueFullError(RateError):
    code = "queue_full"


class JobMissingError(HansardError):
    code = "job_not_found"


class JobUnfinishedError(HansardError):
    code = "job_not_finished"


class CancelledError(HansardError):
    code = "cancelled"


class TimeLimitError(HansardError):
    code = "timed_out"


class ResultTooLargeError(HansardError):
    code = "result_too_large"


def _tree(cls: type[HansardError]) -> dict[str, type[HansardError]]:
    found = {cls.code: cls}
    for child in cls.__subclasses__():
        found |= _tree(child)
    return found


def from_code(code: str, sentence: str) -> HansardError:
    """Rebuild an error that crossed a process boundary as plain text."""
    return _tree(HansardError).get(code, HansardError)(sentence)

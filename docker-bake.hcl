# The builds by name: HF_TOKEN=hf_... docker buildx bake whisper --load
# All but slim hold what their worker needs: they fail without a token for the gated diarizer, and the worker never asks
# the model hub. Languages that are not named here get their words by Whisper's own, less exact idea of their times.

variable "IMAGE" {
  default = "hansard"
}

variable "LANGUAGES" {
  default = "en fr ru"
}

variable "MODEL" {
  default = "large-v3"
}

variable "REVISION" {
  default = "unknown"
}

group "default" {
  targets = ["whisper"]
}

target "worker" {
  platforms = ["linux/amd64"]
  secret    = ["id=hf_token,env=HF_TOKEN"]
  args = {
    LANGUAGES   = LANGUAGES
    REQUIRE_ALL = "1"
    REVISION    = REVISION
  }
}

target "slim" {
  inherits = ["worker"]
  tags     = ["${IMAGE}:slim"]
  args = {
    DEFAULT_MODEL     = ""
    DIARIZATION_MODEL = ""
    LANGUAGES         = ""
    REQUIRE_ALL       = ""
  }
}

target "whisper" {
  inherits = ["worker"]
  tags     = ["${IMAGE}:whisper"]
  args = {
    DEFAULT_MODEL = MODEL
  }
}

target "russian" {
  inherits = ["worker"]
  tags     = ["${IMAGE}:russian"]
  args = {
    DEFAULT_MODEL = "faster-whisper-large-v3-russian"
    MORE_MODELS   = MODEL
  }
}

target "voxtral" {
  inherits = ["worker"]
  tags     = ["${IMAGE}:voxtral"]
  args = {
    DEFAULT_MODEL = "Voxtral-Mini-3B-2507"
    LANGUAGES     = "de en es fr hi it nl pt" # all that it knows: it has no word times of its own
  }
}

target "canary" {
  inherits = ["worker"]
  tags     = ["${IMAGE}:canary"]
  args = {
    DEFAULT_MODEL = "canary-1b-v2"
    LANGUAGES     = ""
    MORE_LOCKS    = "builder/requirements-canary.txt"
  }
}

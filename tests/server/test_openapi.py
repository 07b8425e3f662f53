"""What /openapi.json says: that it is complete, that its examples hold, and that the server does what it says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from fake_runner import TRANSCRIPT, FakeRunner
from fastapi import FastAPI
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from schemathesis import Case, GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from hansard.request import parse
from hansard.server import answer_models
from hansard.server.app import ROUTERS, create_app
from hansard.server.job_views import answer
from hansard.server.openai.answers import respond
from hansard.server.openai.form import DIARIZATION, TRANSCRIPTION, TRANSLATION, Ask, Endpoint, read
from hansard.server.webhooks import Webhooks
from hansard.settings import Settings

if TYPE_CHECKING:
    from conftest import Serve, Server

pytestmark = pytest.mark.timeout(300)

KEY = "the-key-of-this-test"
PUBLIC = {"GET /healthz", "GET /readyz", "GET /health", "GET /status"}
ENDLESS = "GET /api/admin/events"
METHODS = ("get", "post", "put", "patch", "delete")
BETWEEN = ("oneOf", "allOf")  # where rules between fields stand in a body's schema
OPENAI = {"transcriptions": TRANSCRIPTION, "translations": TRANSLATION, "diarization": DIARIZATION}
ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
EXAMPLES = 12  # of each operation and mode: the point is all of them, not all of one

BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

Operations = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(Settings(state_dir=tmp_path_factory.mktemp("state")), FakeRunner())


@pytest.fixture(scope="module")
def told(app: FastAPI) -> dict[str, Any]:
    """The whole description."""
    return app.openapi()


@pytest.fixture(scope="module")
def operations(told: dict[str, Any]) -> Operations:
    """Each operation by its name, as in `GET /v1/jobs`."""
    paths = told["paths"].items()
    return {f"{method.upper()} {path}": about for path, item in paths for method, about in item.items()}


def whole(schema: dict[str, Any], told: dict[str, Any]) -> Draft202012Validator:
    """A validator of a schema whose references lie in the description."""
    return Draft202012Validator({**schema, "components": told["components"]})


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object within a JSON value."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(part)


# Complete


def test_every_route_is_told(operations: Operations) -> None:
    """Those of RunPod are told once for all their addresses."""
    routes = {f"{method} {r.path}".replace(":path}", "}") for r in ROUTES for method in r.methods}
    untold = {name.replace("/{endpoint_id}", "") for name in routes - set(operations)}
    assert {name.replace(" /", " /v2/{endpoint_id}/") for name in untold} <= set(operations)
    assert set(operations) <= routes


def test_every_operation_says_what_it_is(operations: Operations) -> None:
    for name, about in operations.items():
        assert about["description"], name
        assert about["tags"], name
    assert [route.path for route in ROUTES if not route.summary] == []
    repeated = [summary for summary, count in Counter(a["summary"] for a in operations.values()).items() if count > 1]
    assert repeated == []


def test_every_tag_is_told(told: dict[str, Any], operations: Operations) -> None:
    assert {tag["name"] for tag in told["tags"]} == {tag for about in operations.values() for tag in about["tags"]}


def test_every_parameter_says_what_it_is(operations: Operations) -> None:
    for name, about in operations.items():
        for parameter in about.get("parameters", []):
            assert parameter.get("description"), (name, parameter["name"])
        in_path = {p["name"] for p in about.get("parameters", []) if p["in"] == "path"}
        assert in_path == {part.split("}")[0] for part in name.split("{")[1:]}, name


def test_every_field_of_a_body_says_what_it_is(operations: Operations) -> None:
    for name, about in operations.items():
        for kind, content in about.get("requestBody", {}).get("content", {}).items():
            for field, schema in content["schema"].get("properties", {}).items():
                assert schema.get("description") or field == "input", (name, kind, field)


def test_every_answer_has_a_schema_and_every_error_openais_shape(told: dict[str, Any], operations: Operations) -> None:
    for name, about in operations.items():
        good = [answer for status, answer in about["responses"].items() if status.startswith("2")]
        contents = [content for answer in good for content in answer.get("content", {}).values()]
        assert contents or "204" in about["responses"], name
        assert all(content.get("schema") for content in contents), name
        for status in ("4XX", "5XX"):
            schema = about["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}, name
    assert set(told["components"]["schemas"]["Problem"]["required"]) == {"error"}


def test_what_needs_a_key_says_so_and_does(serve: Serve, operations: Operations) -> None:
    server = serve(api_keys=(KEY,))
    for name, about in operations.items():
        method, path = name.replace("{", "").replace("}", "").split()
        answer = server.http.request(method, path)
        assert (answer.status_code == 401) == bool(about.get("security")) == (name not in PUBLIC), name


# Valid


def test_every_schema_is_one(told: dict[str, Any]) -> None:
    found = [part["schema"] for part in parts(told) if isinstance(part.get("schema"), dict)]
    assert len(found) > 100
    for schema in (*found, *told["components"]["schemas"].values()):
        Draft202012Validator.check_schema(schema)


def test_every_reference_leads_somewhere(told: dict[str, Any]) -> None:
    found = {part["$ref"] for part in parts(told) if "$ref" in part}
    assert {reference.rsplit("/", 1)[0] for reference in found} == {"#/components/schemas"}
    assert {reference.rsplit("/", 1)[1] for reference in found} <= set(told["components"]["schemas"])


def test_examples_are_what_their_schemas_say(told: dict[str, Any]) -> None:
    shown = [(part["schema"], part["example"]) for part in parts(told) if "example" in part and "schema" in part]
    for schema in told["components"]["schemas"].values():
        shown += [(schema, example) for example in schema.get("examples", [])]
    assert len(shown) > 15
    for schema, example in shown:
        whole(schema, told).validate(example)


def test_every_body_has_an_example_that_is_a_job(operations: Operations) -> None:
    seen = 0
    for name, about in operations.items():
        for kind, content in about.get("requestBody", {}).get("content", {}).items():
            if name.startswith("POST /api/admin"):
                continue
            seen += 1
            fields = {key: value for key, value in content["example"].items() if key not in ("webhook", "metadata")}
            form = kind == "multipart/form-data"
            told = {key: value for key, value in fields.items() if key not in ("file", "audio_file")}
            job = told.get("input", told) | ({"audio": "upload"} if form else {})
            endpoint = OPENAI.get(name.rsplit("/", 1)[1])
            _accept(job, endpoint)
    assert seen == 18


def _accept(job: dict[str, Any], endpoint: Endpoint | None) -> None:
    """Raises RequestError for fields that are no job."""
    if endpoint:
        read(job, None, endpoint, Settings())
    else:
        parse(job)


def test_the_description_is_served_to_anybody(serve: Serve) -> None:
    server = serve(api_keys=(KEY,), advertised_hosts=("https://asr.example.com",))
    described = server.http.get("/openapi.json").json()
    assert described["servers"] == [{"url": "https://asr.example.com"}]
    assert server.http.get("/docs").status_code == 200
    assert KEY not in json.dumps(described)


# True


@pytest.mark.parametrize(
    ("format", "model"),
    [
        ("json", answer_models.Transcription),
        ("verbose_json", answer_models.VerboseTranscription),
        ("diarized_json", answer_models.DiarizedTranscription),
    ],
)
def test_openais_answers_are_their_models(format: str, model: type[BaseModel]) -> None:
    ask = Ask(parse({"audio": "upload", "diarization": True, "align_output": True, "debug": True}), format, words=True)
    assert untold(json.loads(bytes(respond(ask, TRANSCRIPT).body)), model) == set()


@pytest.mark.parametrize("format", ["json", "verbose_json"])
def test_a_diarization_is_its_model(format: str) -> None:
    ask = Ask(parse({"audio": "upload", "task": "diarization"}), format)
    assert untold(json.loads(bytes(respond(ask, TRANSCRIPT).body)), answer_models.Diarization) == set()


@pytest.mark.parametrize("task", ["transcribe", "diarization", "transcription"])
def test_a_result_is_its_model(task: str) -> None:
    request = parse({"audio": "upload", "task": task, "align_output": task == "transcribe"})
    assert untold(answer(request, TRANSCRIPT), answer_models.Result) == set()


def untold(told: Any, model: type[BaseModel]) -> set[str]:
    """The keys of an answer that its model does not know, at any depth. Raises ValidationError for other values."""
    kept = model.model_validate(told, strict=True, extra="ignore").model_dump()
    return {key for part in parts(told) for key in part} - {key for part in parts(kept) for key in part}


class Ground:
    """A server, and what of it a case may name."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._own = {"name": lambda: "whisper-1", "key": lambda: "large-v3", "job_id": self._ended_job}

    def _ended_job(self) -> str:
        fields = {"audio": "https://example.com/a.mp3", "diarization": True}
        job = self._server.http.post("/v1/jobs", json=fields, headers=self.headers).json()
        self._server.http.get(f"/v1/jobs/{job['id']}/events", headers=self.headers)
        return str(job["id"])

    headers = {"Authorization": f"Bearer {KEY}"}  # noqa: RUF012

    def settle(self, case: Case) -> None:
        """Give a case, in place of names that nobody has, those of things that there are."""
        for name in set(case.path_parameters or ()) & set(self._own):
            case.path_parameters[name] = self._own[name]()


def generatable(part: Any) -> Any:
    """The description without rules between fields: values that obey them all are not found by chance."""
    if isinstance(part, list):
        return [generatable(item) for item in part]
    if isinstance(part, dict):
        return {key: generatable(value) for key, value in part.items() if key not in BETWEEN}
    return part


async def taken(*_: object) -> int:
    """What every receiver of a webhook answers here."""
    return 200


def test_schemathesis(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation, with values that fit its schema and with such as do not."""
    monkeypatch.setattr(Webhooks, "_status", taken)
    server = serve(api_keys=(KEY,), admin_keys=(KEY,))
    schema = schemathesis.openapi.from_dict(generatable(server.app.openapi()))
    schema.config.update(base_url=server.url)
    answered: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.label != ENDLESS:
            answered[operation.label] = _tried(operation, Ground(server))
    assert len(answered) > 25
    admin = {name for name in answered if "/api/admin/models/" in name}  # of a runner that is not this machine's
    assert [name for name, statuses in answered.items() if min(statuses) >= 300 and name not in admin] == []


def _tried(operation: APIOperation[Any, Any, Any], ground: Ground) -> set[int]:
    """The statuses that an operation answered with. Raises what schemathesis finds."""
    statuses: set[int] = set()

    def one(case: Case) -> None:
        if case.meta and case.meta.generation.mode is GenerationMode.POSITIVE:
            ground.settle(case)
        response = case.call(headers=ground.headers)
        statuses.add(response.status_code)
        # Not that everything that fits is taken: there are rules between fields. And text that stands for no value of a
        # form's field, as in `language=`, may well mean that nothing was said.
        form = case.media_type == "multipart/form-data"
        excluded = [positive_data_acceptance, *([negative_data_rejection] if form else [])]
        case.validate_response(response, excluded_checks=excluded)

    takes = operation.body or operation.query or operation.headers or operation.path_parameters
    for mode in GenerationMode if takes else (GenerationMode.POSITIVE,):
        BOUNDED(given(case=operation.as_strategy(generation_mode=mode))(one))()
    return statuses

"""Every error is drawn, has a status, and is documented where it can happen."""

import inspect
import re

from speech import errors
from tests.conftest import TestClient

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.SpeechError)]


def test_the_drawn_tree_is_the_real_one():
    drawn = re.findall(r"^([│├└─ ]*)(\w+)", errors.__doc__.partition("\n\n")[2], re.MULTILINE)
    parents: dict[int, str] = {}
    pairs = {}
    for indent, name in drawn:
        parents[len(indent)] = name
        pairs[name] = parents.get(len(indent) - 4)
    assert pairs == {kind.__name__: kind.__base__.__name__ if kind is not errors.SpeechError else None for kind in TREE}


def test_every_error_has_the_status_of_the_design():
    from responses import speech_error_response

    expected = {
        "NotAWav": 415, "DamagedWav": 400, "UnsupportedWav": 422, "AudioTooShort": 422, "AudioTooLong": 413,
        "ModelNotFound": 503, "ModelMismatch": 503, "InferenceFailed": 500, "NotReady": 503, "QueueFull": 503,
        "DeadlineExceeded": 504, "AudioError": 422, "ModelError": 503, "Unavailable": 503, "SpeechError": 500,
    }  # fmt: skip
    assert {kind.__name__: speech_error_response(kind("x")).status_code for kind in TREE} == expected


def test_every_error_is_in_the_openapi_document(client: TestClient):
    responses = client.get("/openapi.json").json()["paths"]["/upload/"]["post"]["responses"]
    documented = {
        (int(status), code)
        for status, response in responses.items() if status != "200"
        for code in response["content"]["application/json"]["examples"]
    }  # fmt: skip
    from responses import speech_error_response

    leaves = [kind for kind in TREE if not kind.__subclasses__()]
    assert {(speech_error_response(kind("x")).status_code, kind.__name__) for kind in leaves} <= documented

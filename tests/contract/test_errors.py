"""Codes: unique, stable, and each with its HTTP status."""

import ast
import inspect
from collections.abc import Iterator

from api.errors import STATUS, Unauthorized
from worker.contract import errors
from worker.contract.errors import JobError, MediaUnreadable, kind_of

HTTP_ONLY = {"not_found", "method_not_allowed", "unauthorized"}


def tree(root: type[JobError]) -> Iterator[type[JobError]]:
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from tree(child)


def test_every_code_is_one_errors_own():
    codes = [error.code for error in tree(JobError)]

    assert len(codes) == len(set(codes))
    assert all(code.isidentifier() and code == code.lower() for code in codes)


def test_every_code_has_a_status():
    codes = {error.code for error in tree(JobError)}

    assert codes == STATUS.keys() - HTTP_ONLY
    assert Unauthorized.code in STATUS


def test_every_error_of_the_tree_says_what_it_means():
    source = ast.parse(inspect.getsource(errors))
    classes = [node for node in source.body if isinstance(node, ast.ClassDef)]

    assert [node.name for node in classes if not ast.get_docstring(node)] == []


def test_an_error_stands_in_a_job_as_openai_writes_it():
    error = MediaUnreadable("damaged", param="images[0]")

    assert error.as_dict() == {
        "message": "damaged",
        "type": "invalid_request_error",
        "param": "images[0]",
        "code": "media_unreadable",
    }


def test_the_type_says_who_has_to_act():
    assert kind_of("queue_full") == "rate_limit_error"
    assert kind_of("engine_died") == "server_error"
    assert kind_of("job_gone") == "invalid_request_error"

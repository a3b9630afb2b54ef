"""The README keeps its promises: two commands, every setting, every error code."""

import inspect
import re
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from api.errors import STATUS, Unauthorized
from worker.contract import errors
from worker.contract.settings import known_names

README = (Path(__file__).parents[1] / "README.md").read_text()
CODES = {
    kind.code: STATUS.get(kind.code)
    for kind in (*vars(errors).values(), Unauthorized)
    if inspect.isclass(kind) and issubclass(kind, errors.JobError)
    and kind not in {errors.JobError, errors.MediaError}
}  # fmt: skip


@pytest.mark.parametrize("heading", ["Run it", "Test it"])
def test_a_heading_has_exactly_one_command(heading: str):
    section = re.search(rf"^## {heading}$(.*?)^## ", README, re.MULTILINE | re.DOTALL)

    assert section is not None
    blocks = re.findall(r"^```bash\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    assert [len(block.strip().splitlines()) for block in blocks] == [1]


@pytest.mark.parametrize(("name", "field"), known_names().items())
def test_the_settings_table_has_every_setting_with_its_default(name: str, field: FieldInfo):
    default = f"`{field.default}`" if str(field.default) else ""

    assert f"| `{name}` | {default} | {field.description} |" in README


@pytest.mark.parametrize(("code", "status"), CODES.items())
def test_the_error_table_has_every_code_with_its_status(code: str, status: int | None):
    assert re.search(rf"^\| `{code}` \| {status or '–'} \| \S", README, re.MULTILINE)

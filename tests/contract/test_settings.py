"""Settings: unknown names and bad values stop the start with one line."""

from pathlib import Path

import pytest

from worker.contract import settings
from worker.contract.settings import Settings, SettingsError, known_names, without_password


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the caller's environment and `.env` file."""
    for name in known_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FOREBAY_LEASES_S", "6")

    with pytest.raises(SettingsError, match=r"^unknown setting FOREBAY_LEASES_S; .*README"):
        settings.load()


def test_an_unknown_name_in_the_file_is_refused_as_well(tmp_path: Path):
    (tmp_path / ".env").write_text("FOREBAY_LEASES_S=6\n")

    with pytest.raises(SettingsError, match="unknown setting FOREBAY_LEASES_S"):
        settings.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FOREBAY_LEASE_S", "soon"),
        ("FOREBAY_LEASE_S", "0.1"),
        ("FOREBAY_MAX_BODY_BYTES", "-1"),
        ("FOREBAY_KEY_PREFIX", "with space"),
        ("FOREBAY_LOG_LEVEL", "chatty"),
        ("S3_BUCKET", "x"),
    ],
)
def test_a_bad_value_is_one_line_with_key_value_and_reason(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
):
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as caught:
        settings.load()

    assert str(caught.value).startswith(f"{name}={value!r}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["hunter2", "whsec_", "whsec_c2hvcnQ=", "whsec_no base64", "whsec_" + "QUJD" * 8 + ",x"],
)
def test_a_bad_signing_secret_stops_the_start_and_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, value: str
):
    monkeypatch.setenv("FOREBAY_WEBHOOK_SECRET", value)

    with pytest.raises(SettingsError, match=r"^FOREBAY_WEBHOOK_SECRET=…: ") as caught:
        settings.load()

    assert "hunter2" not in str(caught.value)


def test_two_signing_secrets_may_overlap(monkeypatch: pytest.MonkeyPatch):
    first, second = "whsec_" + "QUJD" * 8, "whsec_" + "REVG" * 8
    monkeypatch.setenv("FOREBAY_WEBHOOK_SECRET", f"{first}, {second}")

    assert settings.load().webhook_secrets == (first, second)


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "FOREBAY_API_KEYS"])
def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "s3cret")

    assert "s3cret" not in repr(settings.load())


def test_values_come_from_the_environment_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / ".env").write_text("FOREBAY_LEASE_S=7\nFOREBAY_MODELS=a, b\n")
    monkeypatch.setenv("FOREBAY_LEASE_S", "8")

    found = settings.load()

    assert (found.lease_s, found.model_names) == (8, ("a", "b"))


def test_the_broker_is_the_same_redis_unless_it_is_named():
    plain = Settings(_env_file=None, REDIS_URL="redis://one/0")
    named = Settings(_env_file=None, REDIS_URL="redis://one/0", CELERY_BROKER_URL="amqp://two")

    assert (plain.broker_url, named.broker_url) == ("redis://one/0", "amqp://two")


def test_lists_are_split_and_trimmed():
    found = Settings(_env_file=None, FOREBAY_API_KEYS=" a,b ,", FOREBAY_MEDIA_ALLOW_HOSTS="X.Y")

    assert (found.keys, found.allow_hosts) == ({"a", "b"}, {"x.y"})


def test_every_setting_has_a_pinned_name_and_a_description():
    fields = Settings.model_fields

    assert len(known_names()) == len(fields)
    assert [name for name, field in fields.items() if not field.description] == []


def test_a_url_is_logged_without_its_password():
    assert without_password("redis://:pw@h:1/0") == "redis://h:1/0"
    assert without_password("redis://h/0") == "redis://h/0"

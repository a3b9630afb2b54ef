"""Every setting of every process, read once at start from the environment or a `.env` file.

Names are pinned for operators. A `FOREBAY_*` name that is not in this table stops the start, as
does a bad value: a typo must not run for a week with a default.
"""

import os
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, SettingsConfigDict

from worker.contract.callbacks import key_of
from worker.contract.guard import Guard

MIB = 1024 * 1024


class SettingsError(Exception):
    """A setting is unknown or bad; the message names key, value and reason in one line."""


class Settings(BaseSettings):
    """One process's view of its environment. Frozen; passed in, never read again."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0", alias="REDIS_URL", description="records, streams and leases"
    )
    celery_broker_url: str = Field(
        "", alias="CELERY_BROKER_URL", description="broker, where it is not the same Redis"
    )
    s3_endpoint_url: str = Field(
        "http://127.0.0.1:8333", alias="S3_ENDPOINT_URL", description="object store for media"
    )
    s3_public_endpoint_url: str = Field(
        "",
        alias="S3_PUBLIC_ENDPOINT_URL",
        description="the store's name for clients (presigned URLs)",
    )
    s3_bucket: str = Field("forebay", alias="S3_BUCKET", min_length=3, description="its bucket")
    aws_access_key_id: str = Field("", alias="AWS_ACCESS_KEY_ID", description="its key")
    aws_secret_access_key: str = Field(
        "", alias="AWS_SECRET_ACCESS_KEY", repr=False, description="its secret"
    )
    aws_region: str = Field("us-east-1", alias="AWS_REGION", description="its region")

    hf_token: str = Field(
        "",
        alias="HF_TOKEN",
        repr=False,
        description="for private models of the Hugging Face hub",
    )
    url: str = Field(
        "http://127.0.0.1:8000",
        alias="FOREBAY_URL",
        description="where the command line finds a running server",
    )
    api_keys: str = Field(
        "",
        alias="FOREBAY_API_KEYS",
        repr=False,
        description="comma-separated bearer keys; empty: no authentication",
    )
    flower_basic_auth: str = Field(
        "",
        alias="FOREBAY_FLOWER_BASIC_AUTH",
        repr=False,
        description="user:password for Flower; empty: loopback only",
    )
    webhook_secret: str = Field(
        "",
        alias="FOREBAY_WEBHOOK_SECRET",
        repr=False,
        description="signs the callbacks of jobs with a `webhook_url`: whsec_…, two with a comma "
        "while you change it; empty: one is made and kept in Redis",
    )
    webhook_allow_hosts: str = Field(
        "",
        alias="FOREBAY_WEBHOOK_ALLOW_HOSTS",
        description="comma-separated host names, addresses or CIDRs "
        "that callbacks may go to although not public",
    )
    webhook_https_only: bool = Field(
        False,
        alias="FOREBAY_WEBHOOK_HTTPS_ONLY",
        description="refuse receivers without TLS",
    )
    media_allow_hosts: str = Field(
        "",
        alias="FOREBAY_MEDIA_ALLOW_HOSTS",
        description="comma-separated host names, addresses or CIDRs "
        "that media may come from although not public",
    )
    data_dir: Path = Field(
        Path(".forebay"),
        alias="FOREBAY_DATA_DIR",
        description="where `forebay up` keeps its Redis and S3 data",
    )
    models: str = Field(
        "",
        alias="FOREBAY_MODELS",
        description="comma-separated model names that are accepted before a worker "
        "has announced them; the first is the default",
    )
    key_prefix: str = Field(
        "forebay:",
        alias="FOREBAY_KEY_PREFIX",
        pattern=r"^[\w:.-]{1,40}$",
        description="first part of every Redis key and queue name",
    )
    log_level: str = Field(
        "INFO",
        alias="FOREBAY_LOG_LEVEL",
        pattern="^(DEBUG|INFO|WARNING|ERROR)$",
        description="log level",
    )

    max_body_bytes: int = Field(
        32 * MIB,
        alias="FOREBAY_MAX_BODY_BYTES",
        ge=1024,
        description="request body, data URLs included",
    )
    max_text_bytes: int = Field(
        256 * 1024,
        alias="FOREBAY_MAX_TEXT_BYTES",
        ge=1,
        description="all text of one job, history included",
    )
    max_upload_bytes: int = Field(
        512 * MIB, alias="FOREBAY_MAX_UPLOAD_BYTES", ge=1, description="one presigned upload"
    )
    image_max_bytes: int = Field(
        20_000_000, alias="FOREBAY_IMAGE_MAX_BYTES", ge=1, description="one picture file"
    )
    image_max_pixels: int = Field(
        64_000_000,
        alias="FOREBAY_IMAGE_MAX_PIXELS",
        ge=1,
        description="width × height of a picture before it is shrunk",
    )
    image_fetch_s: float = Field(
        20, alias="FOREBAY_IMAGE_FETCH_S", gt=0, description="whole time to fetch a picture URL"
    )
    video_max_bytes: int = Field(
        512 * MIB, alias="FOREBAY_VIDEO_MAX_BYTES", ge=1, description="one video file"
    )
    video_max_pixels: int = Field(
        9_000_000,
        alias="FOREBAY_VIDEO_MAX_PIXELS",
        ge=1,
        description="width × height of a video frame",
    )
    video_max_s: float = Field(
        600, alias="FOREBAY_VIDEO_MAX_S", gt=0, description="length of a video"
    )
    video_max_frames: int = Field(
        64, alias="FOREBAY_VIDEO_MAX_FRAMES", ge=1, le=1024, description="sampled frames per video"
    )
    video_fetch_s: float = Field(
        180, alias="FOREBAY_VIDEO_FETCH_S", gt=0, description="whole time to fetch a video URL"
    )
    video_decode_s: float = Field(
        120, alias="FOREBAY_VIDEO_DECODE_S", gt=0, description="whole time of the decoder process"
    )
    video_decode_bytes: int = Field(
        2048 * MIB,
        alias="FOREBAY_VIDEO_DECODE_BYTES",
        ge=256 * MIB,
        description="address space of the decoder process",
    )
    media_max_parts: int = Field(
        16, alias="FOREBAY_MEDIA_MAX_PARTS", ge=1, description="pictures and videos per job"
    )
    queue_max_jobs: int = Field(
        1_000_000,
        alias="FOREBAY_QUEUE_MAX_JOBS",
        ge=1,
        description="queued jobs per model, then 429",
    )
    max_tokens: int = Field(
        256, alias="FOREBAY_MAX_TOKENS", ge=1, description="new tokens where a job does not say"
    )
    retention_s: int = Field(
        86_400,
        alias="FOREBAY_RETENTION_S",
        ge=60,
        description="how long an ended job can be read, then 410",
    )
    file_retention_s: int = Field(
        30 * 86_400,
        alias="FOREBAY_FILE_RETENTION_S",
        ge=60,
        le=30 * 86_400,
        description="how long a file of /v1/files is kept where it does not say, then 410",
    )
    batch_max_bytes: int = Field(
        200 * MIB, alias="FOREBAY_BATCH_MAX_BYTES", ge=1, description="one file of batch lines"
    )
    batch_max_lines: int = Field(
        50_000, alias="FOREBAY_BATCH_MAX_LINES", ge=1, description="lines of one batch"
    )
    batch_window: int = Field(
        256,
        alias="FOREBAY_BATCH_WINDOW",
        ge=1,
        description="lines of one batch that wait or run as jobs at the same time",
    )
    batches_max_active: int = Field(
        100,
        alias="FOREBAY_BATCHES_MAX_ACTIVE",
        ge=1,
        description="batches that have not ended, then 429",
    )
    lease_s: float = Field(
        6.0,
        alias="FOREBAY_LEASE_S",
        gt=0.5,
        description="a worker silent for so long loses its jobs",
    )
    engine_silence_s: float = Field(
        120.0,
        alias="FOREBAY_ENGINE_SILENCE_S",
        gt=0,
        description="an engine that gives nothing for so long while jobs are inside is killed and "
        "started again",
    )
    drain_s: float = Field(
        30.0, alias="FOREBAY_DRAIN_S", ge=0, description="grace time for running jobs at SIGTERM"
    )

    @cached_property
    def broker_url(self) -> str:
        """The broker: CELERY_BROKER_URL, else the same Redis as the records."""
        return self.celery_broker_url or self.redis_url

    @cached_property
    def model_names(self) -> tuple[str, ...]:
        """The configured model names, in order."""
        return tuple(name.strip() for name in self.models.split(",") if name.strip())

    @cached_property
    def allow_hosts(self) -> frozenset[str]:
        """Hosts, addresses and CIDRs that media may come from although they are not public."""
        return frozenset(_entries(self.media_allow_hosts))

    @cached_property
    def webhook_guard(self) -> Guard:
        """Where callbacks may go."""
        return Guard.from_entries(_entries(self.webhook_allow_hosts))

    @cached_property
    def webhook_secrets(self) -> tuple[str, ...]:
        """The configured secrets for the callbacks of single jobs; each signs."""
        return tuple(secret.strip() for secret in self.webhook_secret.split(",") if secret.strip())

    @field_validator("webhook_secret")
    @classmethod
    def _are_secrets(cls, value: str) -> str:
        for secret in filter(None, map(str.strip, value.split(","))):
            key_of(secret)
        return value

    @cached_property
    def keys(self) -> frozenset[str]:
        """The accepted bearer keys; empty means that authentication is off."""
        return frozenset(k.strip() for k in self.api_keys.split(",") if k.strip())


def _entries(listed: str) -> list[str]:
    return [entry.strip().lower() for entry in listed.split(",") if entry.strip()]


def known_names() -> dict[str, Any]:
    """Return every setting's environment name with its field, in the order of the table."""
    return {field.alias: field for field in Settings.model_fields.values() if field.alias}


def load() -> Settings:
    """Read the settings; raise SettingsError with one line that says which and why."""
    in_file = {name.upper() for name in DotEnvSettingsSource(Settings).env_vars}
    given = in_file.union(os.environ) - known_names().keys()
    unknown = sorted(name for name in given if name.startswith("FOREBAY_"))
    if unknown:
        msg = f"unknown setting {unknown[0]}; the known ones are in README.md under 'Settings'"
        raise SettingsError(msg)
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        is_secret = name in known_names() and not known_names()[name].repr
        value = "…" if is_secret else repr(first["input"])
        msg = f"{name}={value}: {first['msg']}"
        raise SettingsError(msg) from error


def without_password(url: str) -> str:
    """Return the URL as it may be logged: no user, no password."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"

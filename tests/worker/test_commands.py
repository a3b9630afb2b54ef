"""What the processes that we start find in their environment."""

import pytest

from worker import commands
from worker.commands import ChatOptions
from worker.contract.settings import Settings


def test_a_token_for_the_hub_reaches_the_worker_also_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("home")
    (folder / ".env").write_text("HF_TOKEN=hf_secret\n")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    settings = Settings()

    environ = commands.with_hub_token({"PATH": "/bin"}, settings.hf_token)
    command = commands.chat(ChatOptions(), None, environ, "me")

    assert command.environ["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in repr(settings) + repr(command.argv)


def test_without_a_token_of_ours_the_clients_own_stays():
    environ = {"HF_TOKEN": "of the shell"}

    assert commands.with_hub_token(environ, "") == environ

"""`up` with small scripts instead of API and workers, for tests of starting and stopping.

    python -m tests.support.up_lab FOLDER '{"port": 0, "code": {"chat": "sys.exit(78)"}, …}'

Each part writes what happens to it into FOLDER/diary as `part word pid`. `code` is run by the part
of that name instead of waiting; `drain_s` is how long chat takes to stop. What FOLDER/ready.json
holds is what the API says when asked whether it is ready, every `look_s` seconds.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker import machine
from worker.children import Command
from worker.contract import settings
from worker.datadir import DataDir
from worker.machine import Part, UpError
from worker.up import UpOptions, run

PART = """
import http.server, json, os, signal, sys, time
from pathlib import Path
name, folder, port, drain_s, code = sys.argv[1:]
def say(word):
    with (Path(folder) / "diary").open("a") as file:
        file.write(f"{name} {word} {os.getpid()}\\n")
def stop(*_):
    say("told")
    time.sleep(float(drain_s))
    say("stopped")
    os._exit(0)
def hurry(*_):
    say("hurried")
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, hurry)
(Path(folder) / f"{name}.env").write_text(json.dumps(dict(os.environ)))
say("began")
exec(code)
if name != "api":
    time.sleep(60)
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health/ready" else 404)
        self.end_headers()
        said = Path(folder) / "ready.json"
        self.wfile.write(said.read_bytes() if said.exists() else b"{}")
http.server.HTTPServer(("127.0.0.1", int(port)), Ready).serve_forever()
"""


def main() -> None:
    """Run `up` until a signal; status 1 and one line where it cannot."""
    folder, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
    machine.TROUBLES_S = asked.get("look_s", machine.TROUBLES_S)
    data_dir = asked.get("data_dir", str(folder / "data"))
    options = UpOptions(
        settings.load(),
        dict(os.environ),
        port=asked.get("port", 0),
        flower_port=asked.get("flower_port", 0),
        data_dir=None if data_dir is None else Path(data_dir),
    )

    def parts(options: UpOptions, data: DataDir, environ: Mapping[str, str]) -> tuple[Part, ...]:
        return scripts(folder, asked, options.port, data, environ)

    try:
        run(options, lambda line: print(line, file=sys.stderr, flush=True), ready, parts=parts)
    except UpError as error:
        sys.exit(f"error: {error}")


def scripts(
    folder: Path, asked: dict[str, Any], port: int, data: DataDir, environ: Mapping[str, str]
) -> tuple[Part, ...]:
    """Return four scripts in the order of the real parts."""

    def script(name: str) -> Command:
        words = (str(folder), str(port), str(asked.get("drain_s", 0) if name == "chat" else 0))
        code = asked.get("code", {}).get(name, "")
        return Command(
            name, (sys.executable, "-c", PART, name, *words, code), environ, log=data.log(name)
        )

    return tuple(
        Part(script(name), is_needed=name != "flower", serves=name == "api")
        for name in ("api", "chat", "media", "flower")
    )


def ready(url: str) -> None:
    """Print the line that callers wait for."""
    print(f"ready {url}", flush=True)


if __name__ == "__main__":
    main()

"""`forebay webhooks`: registered endpoints, deliveries, and a receiver to try callbacks with."""

# ruff: noqa: PLC0415 - as in `cli`: what a command needs is imported inside it

import click

LOOPBACK = "127.0.0.1"

_url = click.option("--url", "server", help="A running server.  [default: FOREBAY_URL]")


@click.group(epilog="Example: forebay webhooks listen --port 9000")
def webhooks() -> None:
    """Callbacks: who is told of what, what was delivered, and a way to try it."""


@webhooks.group(epilog="Example: forebay webhooks endpoints list")
def endpoints() -> None:
    """Receivers that are told of every job, not of one."""


@endpoints.command(
    "add", epilog="Example: forebay webhooks endpoints add https://example.com/hook --name shop"
)
@_url
@click.option("--name", default="", help="For people.")
@click.option(
    "--event", "events", multiple=True, help="Such as job.failed; repeatable.  [default: all ends]"
)
@click.argument("receiver", metavar="URL")
def add(server: str | None, name: str, events: tuple[str, ...], receiver: str) -> int:
    """Register a receiver and print it, with its signing secret: it is told this once."""
    from worker import client_webhooks

    return client_webhooks.add(server, receiver, name, events)


@endpoints.command("list", epilog="Example: forebay webhooks endpoints list")
@_url
def list_endpoints(server: str | None) -> int:
    """List receivers, newest first."""
    from worker import client_webhooks

    return client_webhooks.list_endpoints(server)


@endpoints.command("remove", epilog="Example: forebay webhooks endpoints remove we_1f0c")
@_url
@click.argument("endpoint_id")
def remove(server: str | None, endpoint_id: str) -> int:
    """Forget a receiver and what it is owed."""
    from worker import client_webhooks

    return client_webhooks.remove(server, endpoint_id)


@endpoints.command("rotate", epilog="Example: forebay webhooks endpoints rotate we_1f0c")
@_url
@click.option("--now", is_flag=True, help="The old secret signs no more, not even for a day.")
@click.argument("endpoint_id")
def rotate(server: str | None, now: bool, endpoint_id: str) -> int:
    """Make a new secret and print it; for 24 h deliveries carry both signatures."""
    from worker import client_webhooks

    return client_webhooks.rotate(server, endpoint_id, overlap=not now)


@endpoints.command("enable", epilog="Example: forebay webhooks endpoints enable we_1f0c")
@_url
@click.argument("endpoint_id")
def enable(server: str | None, endpoint_id: str) -> int:
    """Tell a disabled receiver again, first of all what it missed."""
    from worker import client_webhooks

    return client_webhooks.enable(server, endpoint_id)


@webhooks.command(epilog="Example: forebay webhooks deliveries job_01J8ZQ")
@_url
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)
@click.argument("of", metavar="JOB|ENDPOINT")
def deliveries(server: str | None, limit: int, of: str) -> int:
    """List what was delivered or is owed, the youngest first."""
    from worker import client_webhooks

    return client_webhooks.deliveries(server, of, limit)


@webhooks.command(epilog="Example: forebay webhooks redeliver msg_5b2a")
@_url
@click.argument("event_id")
def redeliver(server: str | None, event_id: str) -> int:
    """Deliver an event again, now and under its id."""
    from worker import client_webhooks

    return client_webhooks.redeliver(server, event_id)


@webhooks.command(epilog="Example: forebay webhooks test https://example.com/hook")
@_url
@click.option("--event", default="job.completed", show_default=True, help="The sample's type.")
@click.argument("receiver", metavar="ENDPOINT|URL")
def test(server: str | None, event: str, receiver: str) -> int:
    """Send a sample and tell what was answered; 0 if it was taken."""
    from worker import client_webhooks

    return client_webhooks.test(server, receiver, event)


@webhooks.command(epilog="Example: forebay webhooks secret")
@_url
def secret(server: str | None) -> int:
    """Print the secret that signs the callbacks of jobs with a `webhook_url`."""
    from worker import client_webhooks

    return client_webhooks.secret(server)


@webhooks.command(epilog="Example: forebay webhooks listen --port 9000")
@_url
@click.option("--host", default=LOOPBACK, show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=9000, show_default=True)
@click.option("--secret", "signing", help="whsec_…  [default: that of the running server]")
def listen(server: str | None, host: str, port: int, signing: str | None) -> int:
    """Receive callbacks here, verify them and print them, until Ctrl-C.

    The workers must be allowed to come here: start them with FOREBAY_WEBHOOK_ALLOW_HOSTS=127.0.0.1.
    """
    from worker import client_webhooks

    return client_webhooks.listen(server, host, port, signing)

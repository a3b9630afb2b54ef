"""The app object that Celery's own commands (`-A`) and Flower need at import."""

from worker.contract import settings
from worker.contract.broker import make_app

app = make_app(settings.load())

"""`python -m worker` is the `forebay` command."""

from worker.cli import main

main()

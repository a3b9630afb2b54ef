"""The ground floor: what every process agrees on, and the only code that speaks to the stores.

Modules here import nothing else of ours; `api` imports nothing of `worker` but this.
"""

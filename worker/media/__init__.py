"""The media stage: bytes that a user named become upright, bounded pictures in the object store.

It runs on CPUs only, before a job joins an engine's queue, and imports no engine.
"""

"""Batches on their way: read and checked, run as jobs a window at a time, their results written."""

"""Servers and factories only."""

"""Builds and owns what one worker process needs: start, run jobs, drain, close. Decides nothing."""

"""The thin face: HTTP in, one contract call, HTTP out."""

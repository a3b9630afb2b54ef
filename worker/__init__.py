"""Forebay's product: what happens to a job after it was handed in. Importing this costs nothing."""

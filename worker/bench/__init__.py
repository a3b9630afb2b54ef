"""`forebay bench`: the same load against any OpenAI-compatible server, and against our own jobs."""

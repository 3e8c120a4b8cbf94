"""How long a test waits for another process before it says that it hangs: no result depends on it."""

SECONDS = 900

"""Forms of the console: one per action; they validate and do not save."""

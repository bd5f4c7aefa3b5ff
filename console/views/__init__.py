"""Pages of the console: plain functions, one page or fragment each."""

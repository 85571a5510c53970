"""The `guided` tool strategy: which tool, by likelihood; its arguments, grounded in the request."""

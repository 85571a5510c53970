"""The terminal app: a chat one can see through."""

"""Before a model is loaded: what it needs, what is there, and the settings that fit."""

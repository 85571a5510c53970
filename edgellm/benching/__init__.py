"""`edgellm bench`: how fast this machine runs a model, part by part."""

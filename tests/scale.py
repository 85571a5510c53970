"""How many examples the laws are tried on: EDGELLM_EXAMPLES=20 tries twenty times as many as a quick run."""

import os

SCALE = int(os.environ.get("EDGELLM_EXAMPLES") or 1)

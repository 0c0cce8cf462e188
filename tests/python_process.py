"""Runs Python in a process of its own: what is read when a module is imported."""

import os
import subprocess
import sys


def run_python(source, **variables):
    """Without this project's own variables but those that are given."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EPICONV_")}
    command = [sys.executable, "-c", source]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True)

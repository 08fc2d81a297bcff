"""Reads every config.pbtxt of a Triton repository with the official schema; runs where tritonclient is installed.

check_configs.py REPO
"""

from __future__ import annotations

import sys
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

for path in sorted(Path(sys.argv[1]).glob("*/config.pbtxt")):
    config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    if config.name != path.parent.name:
        sys.exit(f"{path}: the model is called {config.name}")
    sys.stdout.write(f"{config.name}\n")

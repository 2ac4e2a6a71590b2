"""What a GPU computes. `make test-gpu` asks for one; elsewhere nothing of this folder is collected."""

from __future__ import annotations

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]

"""Quantization-aware training in PyTorch (extra ``train``): modules, a training loop with checkpoints, export."""

from sigbit_hw.spec.errors import SigbitError

try:
    import torch  # noqa: F401
except ImportError as error:
    raise SigbitError("Training needs PyTorch; install it with: pip install 'sigbit[train]'") from error

from .loop import Team, train
from .network import QatNetwork, TrainingError, prepare_qat
from .recipe import Recipe, Stage

__all__ = ["QatNetwork", "Recipe", "Stage", "Team", "TrainingError", "prepare_qat", "train"]

"""Full-size architectures from the packages timm and pytorchcv, with random weights.

Both packages import torchvision, which there is none of here and which no model needs: an empty one stands in.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

EMPTY = "torchvision"
# Where `make zoo` installs them: apart from the virtual environment, which nothing but the sweep needs them in.
INSTALLED = Path(__file__).resolve().parents[3] / "build" / "zoo"


class _AnyMember(type):
    """The type of an empty class with every public member, each an empty class again."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyMember(name, (), {})


class _Anything(ModuleType):
    """A module in which every public name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyMember(name, (), {})


class _EmptyPackage(MetaPathFinder, Loader):
    """Finds every module of the absent package."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == EMPTY else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def is_installed(source: str) -> bool:
    """Whether the package is there."""
    make_importable()
    return importlib.util.find_spec(source) is not None


def make_importable() -> None:
    """Let the two packages be imported, also where there is no torchvision."""
    if str(INSTALLED) not in sys.path:
        sys.path.append(str(INSTALLED))
    if importlib.util.find_spec(EMPTY) is None:
        sys.meta_path.append(_EmptyPackage())


def build(source: str, name: str, size: int, **options: Any) -> nn.Module:
    """A seeded model in eval mode; `source` is "timm" or "pytorchcv"."""
    make_importable()
    torch.manual_seed(0)
    if source == "timm":
        timm = importlib.import_module("timm")
        net: nn.Module = timm.create_model(name, pretrained=False, exportable=True, **options)
    else:
        module, _, function = name.rpartition(".")
        net = getattr(importlib.import_module(f"pytorchcv.models.{module}"), function)(pretrained=False, **options)
    return _settle(net.eval(), size)


@torch.no_grad()
def _settle(net: nn.Module, size: int) -> nn.Module:
    """Give every BatchNorm the statistics of noise, moved off the truth a little: fresh ones hide wrong folding, and
    without them activations grow from layer to layer."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
        norm.train()
    net(torch.randn(2, 3, size, size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None
        assert var is not None
        mean += 0.1 * var.sqrt() * torch.randn_like(mean)
        var *= torch.empty_like(var).uniform_(0.85, 1.2)
    return net

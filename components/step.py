"""The decorator that makes a function a pipeline step, and the images that the steps run in.

The images are made by the Dockerfile, one per set of dependencies: `cpu` has no torch, `gpu` has.
Prefix and tag are read when a pipeline is compiled (`make compile` sets them to the registry and
the git revision); nothing is installed when a step starts.
"""

import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Literal

from kfp import dsl

PREFIX = os.environ.get("LINNET_IMAGE_PREFIX", "linnet")
TAG = os.environ.get("LINNET_IMAGE_TAG", version("linnet"))


def step(image: Literal["cpu", "gpu"]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that makes a lightweight component running in one of our images."""
    component: Callable[[Callable[..., Any]], Callable[..., Any]] = dsl.component(
        base_image=f"{PREFIX}/{image}:{TAG}", install_kfp_package=False
    )
    return component

"""Subnets of every family: one architecture of a space each, and how they are read. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from growtas.spaces.mobilenet_subnet import MobileNetSubnet
from growtas.spaces.vit_subnet import Subnet

__all__ = ["AnySubnet", "MobileNetSubnet", "Subnet", "parse_subnet", "subnet_from_json"]

AnySubnet = Subnet | MobileNetSubnet  # of either family


def parse_subnet(text: str) -> AnySubnet:
    """Read the text form of a subnet of either family; those of MobileNetV3 spaces begin with k.

    Raises:
        UsageError: the text has neither form.
    """
    return (MobileNetSubnet if text.strip().startswith("k") else Subnet).parse(text)


def subnet_from_json(data: str | Mapping[str, Any]) -> AnySubnet:
    """Read the JSON form of a subnet of either family; those of MobileNetV3 spaces have a kernel.

    Raises:
        UsageError: the fields are those of neither.
    """
    return (MobileNetSubnet if "kernel" in data else Subnet).from_json(data)

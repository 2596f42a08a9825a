"""Every target of the fuzzer."""

from __future__ import annotations

import yaml_targets

TARGETS = {target.name: target for target in (*yaml_targets.TARGETS,)}

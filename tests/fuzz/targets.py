"""Every target of the fuzzer."""

from __future__ import annotations

import cli_targets
import data_targets
import model_targets
import yaml_targets

TARGETS = {
    target.name: target
    for target in (*yaml_targets.TARGETS, *cli_targets.TARGETS, *model_targets.TARGETS, *data_targets.TARGETS)
}

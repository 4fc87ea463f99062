"""Policies of the command line; without torch, so that a wrong one is refused before it is imported."""

from leadspan.data.truncation import AnyPolicy
from leadspan.settings import Settings, validate
from leadspan.yaml_text import parse_yaml


class _OnePolicy(Settings):
    cut: AnyPolicy


def parse_policy(text: str) -> AnyPolicy:
    """A policy from YAML, as a recipe's `cut`.

    Raises:
        SettingsError: It is none.
    """
    return validate(_OnePolicy, {"cut": parse_yaml(text, f"--cut {text}")}, f"--cut {text}").cut

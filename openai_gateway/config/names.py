"""The names that may stand in a server's entry: our keys, their older names, NeMo Gym's own, and misspelt ones.

See also: keys (what our keys mean), build (what is done with the others).
"""

from __future__ import annotations

import difflib
from typing import Final

from openai_gateway.config.keys import KEYS, SHARED_KEYS

# NeMo Gym's BaseRunServerInstanceConfig, BaseResponsesAPIModelConfig and their kin.
GYM_KEYS: Final = frozenset(
    {
        "datasets",
        "debug",
        "description",
        "domain",
        "dry_run",
        "entrypoint",
        "extra_args",
        "host",
        "license",
        "name",
        "num_gpus_required",
        "num_workers",
        "port",
        "provides",
        "replace_developer_role_with_system",
        "return_token_id_information",
        "reward_range",
        "should_capture_model_calls",
        "spinup_server",
        "trajectory_capture_dir",
        "uses_reasoning_parser",
        "value",
        "verified",
    }
)
CURES: Final = {"openai_organization": "give it as the header OpenAI-Organization in openai_default_headers"}
OLD_NAMES: Final = {"base_url": "openai_base_url", "api_key": "openai_api_key", "model": "openai_model"}
OLD_DEFAULTS: Final = {"openai_base_url": "https://api.openai.com/v1"}


def nearest_shared(name: str) -> str | None:
    """Return the shared key that an unknown name must be misspelt for, None if it is some other name."""
    matches = difflib.get_close_matches(name, SHARED_KEYS, n=1, cutoff=0.9) if name not in KEYS else []
    return matches[0] if matches else None


def nearest(name: str) -> str | None:
    """Return the known key that an unknown one most likely means."""
    matches = difflib.get_close_matches(name, [*KEYS, *GYM_KEYS], n=1, cutoff=0.6)
    return matches[0] if matches else None

"""One family of parameters for a whole experiment: `--set adaptation.family=prefix`.

The stages' learning rates are meant for full fine-tuning. A stage that takes its family from here
moves `RATES` times as fast; one that names a family of its own keeps the rate that it names.
"""

from typing import Any

from stages.config import Config, PPOConfig, RewardConfig, SFTConfig
from stages.families import RATES

STAGES: dict[str, type[Config]] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "ppo_init": SFTConfig,
    "ppo": PPOConfig,
    "ppo_ptx": PPOConfig,
}
LEFT_OUT = ("ppo_init", "ppo_ptx")  # unless the experiment names them


def fill_stages(told: Any) -> Any:
    """The experiment's mapping with its `adaptation` in every stage that has none.

    What is not a mapping, or names no known family, is left for the config's own checks.
    """
    if not isinstance(told, dict) or not isinstance(told.get("adaptation"), dict):
        return told
    adaptation = told["adaptation"]
    factor = RATES.get(str(adaptation.get("family")), 1.0)
    filled = dict(told)
    for name, kind in STAGES.items():
        stage = told.get(name, None if name in LEFT_OUT else {})
        if isinstance(stage, dict) and "adaptation" not in stage:
            rates = {
                key: rate * factor
                for key in ("learning_rate", "critic_learning_rate")
                if key in kind.model_fields
                and isinstance(rate := stage.get(key, kind.model_fields[key].default), int | float)
            }
            filled[name] = {**stage, **rates, "adaptation": adaptation}
    return filled

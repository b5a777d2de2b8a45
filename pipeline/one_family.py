"""One family of parameters for a whole experiment: `--set adaptation.family=prefix`.

The stages' learning rates are meant for full fine-tuning. A stage that takes its family from here
moves faster by the factors of `rates_of`; one that names a family of its own keeps its own rate.
"""

from typing import Any

from stages.config import Config, PPOConfig, RewardConfig, SFTConfig
from stages.families import rates_of

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
    factors = rates_of(adaptation)
    filled = dict(told)
    for name, kind in STAGES.items():
        stage = told.get(name, None if name in LEFT_OUT else {})
        if isinstance(stage, dict) and "adaptation" not in stage:
            own = factors.score if kind is RewardConfig else factors.policy
            rates = {
                key: rate * factor
                for key, factor in (("learning_rate", own), ("critic_learning_rate", factors.score))
                if key in kind.model_fields
                and isinstance(rate := stage.get(key, kind.model_fields[key].default), int | float)
            }
            filled[name] = {**stage, **rates, "adaptation": adaptation}
    return filled

"""The arithmetic of each training stage, and the weights that decoding reads from memory.

A token costs two operations a weight forward and four backward (Kaplan et al. 2020), two where the
weights are frozen.
"""

from pipeline.config.experiment import ExperimentConfig
from pipeline.estimate.lengths import Lengths
from pipeline.estimate.model_size import FLOAT, ModelSize
from stages.ppo.config import JointModels, PPOConfig, SeparateModels
from stages.reward.config import RewardConfig
from stages.sft.config import SFTConfig


def sft_flops(model: ModelSize, config: SFTConfig, lengths: Lengths) -> float:
    """Return the operations of supervised fine-tuning."""
    texts = lengths.demonstrations
    tokens = config.epochs * texts.count * min(texts.mean, config.max_tokens)
    if config.pretraining is not None:
        share = config.pretraining.share / (1.0 - config.pretraining.share)
        tokens += config.epochs * texts.count * share * config.pretraining.tokens_per_example
    return tokens * model.update_flops


def reward_flops(
    model: ModelSize, config: RewardConfig, experiment: ExperimentConfig, lengths: Lengths
) -> float:
    """Return the operations of training the reward model."""
    prompts = lengths.ranking_prompts
    fewest, most = experiment.sampling.responses
    new_tokens = max(setting.max_new_tokens for setting in experiment.sampling.settings)
    mean = prompts.mean + (fewest + most) / 2 * min(lengths.responses.mean, new_tokens)
    return config.epochs * prompts.count * mean * model.update_flops


def ppo_flops(policy: ModelSize, critic: ModelSize, config: PPOConfig, lengths: Lengths) -> float:
    """Return the operations of PPO.

    The policy decodes, gives the old log-probabilities and is updated; the reference gives its own;
    the critic gives values and is updated; the reward model scores. Critic and score are heads on
    other forward passes where models are shared.
    """
    response = min(lengths.responses.mean, config.sampling.max_new_tokens)
    tokens = config.episodes * (lengths.ppo_prompts.mean + response)
    epochs = config.inner_epochs
    flops = tokens * (3 * policy.forward_flops + epochs * policy.update_flops)
    if isinstance(config.models, SeparateModels):
        flops += tokens * (critic.forward_flops + epochs * critic.update_flops)
    if not isinstance(config.models, JointModels):
        flops += tokens * critic.forward_flops
    mix = config.pretraining
    if mix is not None:
        texts = config.episodes * mix.examples_per_episode * mix.tokens_per_example
        flops += epochs * texts * policy.update_flops
    return flops


def decoding_bytes(policy: ModelSize, config: PPOConfig) -> float:
    """Return the bytes of weights that decoding reads: all of them for every token of a batch."""
    rows = min(config.sampling.batch_size, config.episodes_per_rollout)
    steps = config.sampling.max_new_tokens * config.episodes / rows
    return steps * policy.parameters * FLOAT

"""The config of an experiment: one YAML file, checked before anything is loaded or written.

Every class is frozen and refuses unknown keys; nothing here imports torch. The stages' own settings
are in `stages/NAME/config.py`, the evaluation's in `pipeline/config/evaluation.py`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.config.baselines import Baseline
from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.labeling import HumanAnnotators
from pipeline.quickstart.data import Sizes
from pipeline.quickstart.judge import GOLD, Taste
from reward_models.records import Use
from stages.adapters.config import Adaptation, Full, rates_of
from stages.config import HUB, Config, DataSource, FilePath, Fraction, ModelName
from stages.generation.config import SamplingConfig
from stages.ppo.config import PPOConfig
from stages.precision_config import Precision
from stages.reward.config import RewardConfig
from stages.sft.config import SFTConfig

STAGES: dict[str, type[Config]] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "ppo_init": SFTConfig,
    "ppo": PPOConfig,
    "ppo_ptx": PPOConfig,
}
LEFT_OUT = ("ppo_init", "ppo_ptx")  # unless the experiment names them
LOADING = ("sampling", "evaluation")  # which train nothing but load models


def fill_stages(values: Any) -> Any:
    """Return the experiment's mapping with its `precision` and `adaptation` in every stage.

    A stage's own adaptation stays, and so does each key of its own precision. What is not a
    mapping, or names no known family, is left for the config's own checks.
    """
    if not isinstance(values, dict):
        return values
    return _with_adaptation(_with_attention(_with_precision(values)))


def _with_attention(values: dict[str, Any]) -> dict[str, Any]:
    attention = values.get("attn_implementation")
    if attention is None:
        return values
    filled = dict(values)
    for name in (*STAGES, *LOADING):
        stage = values.get(name, None if name in LEFT_OUT else {})
        if isinstance(stage, dict):
            filled[name] = {"attn_implementation": attention, **stage}
    return filled


def _with_precision(values: dict[str, Any]) -> dict[str, Any]:
    precision = values.get("precision")
    if not isinstance(precision, dict):
        return values
    filled = dict(values)
    for name in (*STAGES, *LOADING):
        stage = values.get(name, None if name in LEFT_OUT else {})
        if isinstance(stage, dict) and isinstance(own := stage.get("precision", {}), dict):
            filled[name] = {**stage, "precision": {**precision, **own}}
    return filled


def _with_adaptation(values: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(values.get("adaptation"), dict):
        return values
    adaptation = values["adaptation"]
    factors = rates_of(adaptation)
    filled = dict(values)
    for name, kind in STAGES.items():
        stage = values.get(name, None if name in LEFT_OUT else {})
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


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Policy = Literal["base", "sft"]


class QuickstartSource(Config):
    """The invented world of `pipeline/quickstart`: synthetic data sets, made on the spot."""

    kind: Literal["quickstart"] = "quickstart"
    sizes: Sizes = Sizes()


class FileSource(Config):
    """Data sets of your own: a file as in docs/data.md, or `hf:` and a data set or a folder.

    `hf:NAME`, `hf:NAME:SPLIT`, `hf:NAME:CONFIG:SPLIT`; see `stages/data/hub_data.py`.
    """

    kind: Literal["files"]
    demonstrations: DataSource | None = None  # needed unless sft is null
    validation: DataSource | None = None  # None: a tenth of the demonstrations
    ranking_prompts: DataSource | None = None  # K responses to each are ranked; see `reward`
    ppo_prompts: DataSource | None = None  # None: the ranking prompts
    validation_prompts: DataSource | None = None  # None: 200 of the PPO prompts are kept apart
    test_prompts: DataSource
    toxicity_prompts: DataSource | None = None  # None: toxicity is not measured
    pretraining_texts: DataSource | None = None  # needed where ppo_ptx is set
    held_out_texts: DataSource | None = None  # None: a twentieth of the pretraining texts
    prompts_per_user: PositiveInt | None = None  # of each training set; the paper has 200
    shared_prefix: PositiveInt | None = None  # characters that make two prompts one (section 3.2)
    max_prompt_tokens: PositiveInt | None = None  # longer prompts are left out; of `model`'s tokens


class RankingTasks(Config):
    """The tasks of annotators: K responses to a prompt (K = 4 to 9 in section 3.5)."""

    responses: tuple[PositiveInt, PositiveInt] = (4, 9)
    policies: list[Policy] = ["sft"]
    settings: list[SamplingConfig] = [SamplingConfig(temperature=1.0)]
    precision: Precision = Precision()
    attn_implementation: str | None = None  # sdpa, eager, flash_attention_2; null: as loaded

    @model_validator(mode="after")
    def a_page_holds_two_to_nine(self) -> Self:
        """Check the range of K, and that there is something to sample from."""
        low, high = self.responses
        if not 2 <= low <= high <= 9:
            raise ValueError(
                f"responses is [{low}, {high}]; expected two numbers, 2 <= low <= high <= 9"
            )
        if not self.policies or not self.settings:
            raise ValueError("policies and settings each need at least one entry")
        return self


class SimulatedAnnotators(Config):
    """Programs rank in place of people. Every ranking and every report says so."""

    kind: Literal["simulated"] = "simulated"
    overlap: Fraction = 0.15  # share of tasks ranked twice, so that agreement can be measured
    taste: Taste = GOLD  # what they like; changing it changes what the policy learns


class ImportedRankings(Config):
    """Rankings made elsewhere, with the tasks they are about. No outputs are sampled.

    Without `tasks`, `rankings` are preference pairs, chosen and rejected, as TRL reads them: a
    file, or `hf:` and a data set; see stages/data/preferences.py.
    """

    kind: Literal["imported"]
    tasks: FilePath | None = None
    rankings: DataSource
    use: Use = "people"  # of them: whose the reward model learns from; people's score it

    @model_validator(mode="after")
    def rankings_of_tasks_are_a_file(self) -> Self:
        """Refuse a data set of the hub beside a file of tasks."""
        if self.tasks is not None and self.rankings.startswith(HUB):
            raise ValueError(
                f"labeling.rankings is {self.rankings} beside labeling.tasks; expected the file of "
                "those tasks' rankings, or no tasks"
            )
        return self


Labeling = Annotated[
    SimulatedAnnotators | HumanAnnotators | ImportedRankings, Field(discriminator="kind")
]


class ExperimentConfig(Config):
    """One experiment: base model, data, and what each stage does with them.

    `model` and `reward_base` are a folder, a model's name on the hub, or `quickstart` for the base
    that ships with the package. `reward_base` may also be `sft` (the fine-tuned model) or `base`.

    A run may start later, from models made elsewhere: `sft: null` with `policy`, `reward: null`
    with `reward_model`. See docs/models.md.
    """

    name: Name
    seed: NonNegativeInt = 0
    threads: PositiveInt | None = None  # of a machine; None: torch's choice. 1 makes runs bit-equal
    model: ModelName = "quickstart"  # the base; with `policy` alone it is that
    policy: ModelName | None = None  # with sft: null, the model in place of the fine-tuned one
    adaptation: Adaptation | None = None  # of every stage that names none; see `fill_stages`
    precision: Precision = Precision()  # of every stage, key by key, that does not name its own
    attn_implementation: str | None = None  # of every stage that names none; null: transformers'
    data: Annotated[QuickstartSource | FileSource, Field(discriminator="kind")] = QuickstartSource()
    sft: SFTConfig | None = SFTConfig()  # null: see `policy`
    sft_choice: Literal["reward", "loss"] = "reward"  # which epoch's checkpoint goes on to PPO
    sampling: RankingTasks = RankingTasks()
    labeling: Labeling = SimulatedAnnotators()
    reward_base: ModelName = "sft"
    reward: RewardConfig | None = RewardConfig()  # null: nothing is ranked; see `reward_model`
    reward_model: ModelName | None = None  # with reward: null; also any classifier with one label
    ppo_init: SFTConfig | None = None  # fine-tuning for PPO (appendix C.3); null: it starts at SFT
    ppo: PPOConfig | None = PPOConfig()  # null: this stage is left out
    ppo_ptx: PPOConfig | None = None  # the same with the pretraining mix
    rounds: PositiveInt = 1  # of rankings, reward model and PPO; see pipeline/steps/order.py
    baselines: list[Baseline] = []  # judged beside the trained policies; docs/baselines.md
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def stages_without_a_family_take_the_experiments(cls, values: Any) -> Any:
        """Fill in `precision`, and `adaptation` with the learning rates that its family wants."""
        if isinstance(values, dict) and values.get("policy") is not None:
            values = {"model": values["policy"], **values}
        return fill_stages(values)

    @model_validator(mode="after")
    def a_stage_or_a_model_in_its_place(self) -> Self:
        """Hold `sft` and `reward` to a stage of this run, or a model made elsewhere."""
        for name, stage, key, model in (
            ("sft", self.sft, "policy", self.policy),
            ("reward", self.reward, "reward_model", self.reward_model),
        ):
            if stage is None and model is None:
                raise ValueError(
                    f"{name} is null and {key} is not set; expected in {key} the folder or hub "
                    "name of the model that takes its place"
                )
            if stage is not None and model is not None:
                raise ValueError(
                    f"{key} is {model} but {name} is not null: it would have no effect; expected "
                    f"{name}: null"
                )
        for one in self.baselines:
            if one.kind == "instruction_tuned" and (one.sft or self.sft) is None:
                raise ValueError("sft is null: baseline instruction_tuned needs an sft of its own")
        if self.sft is None and self.ppo_init is not None:
            raise ValueError("sft is null but ppo_init is set: PPO would not start from policy")
        if self.reward is None and self.labeling.kind != "simulated":
            raise ValueError(
                f"reward is null but labeling.kind is {self.labeling.kind}: nothing learns from "
                "rankings; expected no labeling"
            )
        if self.reward is None and self.rounds > 1:
            raise ValueError(
                f"reward is null but rounds is {self.rounds}: nothing is ranked; expected 1"
            )
        return self

    @model_validator(mode="after")
    def the_data_that_stages_need_is_there(self) -> Self:
        """Refuse files that lack what a stage of this experiment reads."""
        if not isinstance(self.data, FileSource):
            return self
        kinds = {baseline.kind for baseline in self.baselines}
        own = self.labeling.kind != "simulated" and self.labeling.tasks is not None
        for key, value, reason in (
            ("demonstrations", self.data.demonstrations, self.sft and "sft learns from them"),
            (
                "demonstrations",
                self.data.demonstrations,
                "prompted" in kinds and "baseline prompted shows some",
            ),
            (
                "ranking_prompts",
                self.data.ranking_prompts,
                self.reward and not own and "responses to them are ranked",
            ),
            (
                "ppo_prompts",
                self.data.ppo_prompts or self.data.ranking_prompts,
                "PPO answers them",
            ),
        ):
            if value is None and reason:
                raise ValueError(f"data.{key} is missing: {reason}")
        return self

    @property
    def sft_adaptation(self) -> Adaptation:
        """The adaptation of SFT; `full` of a policy made elsewhere, which is taken as it is."""
        return Full() if self.sft is None else self.sft.adaptation

    @model_validator(mode="after")
    def a_further_round_has_something_new_to_rank(self) -> Self:
        """Refuse rounds without a policy to sample from, or without annotators to rank it."""
        if self.rounds == 1:
            return self
        if self.ppo is None and self.ppo_ptx is None:
            raise ValueError(
                f"rounds is {self.rounds} but ppo and ppo_ptx are null: round 2 would sample from "
                "the policies of round 1 again"
            )
        own = self.labeling.kind == "human" and self.labeling.tasks is not None
        if self.labeling.kind == "imported" or own:
            raise ValueError(
                f"rounds is {self.rounds} but labeling brings its own tasks: nobody ranks what "
                "round 2 samples; expected human without labeling.tasks, or simulated"
            )
        return self

    @model_validator(mode="after")
    def the_mix_is_where_its_name_is(self) -> Self:
        """Hold `ppo` to no pretraining mix and `ppo_ptx` to one with texts to draw from."""
        if self.ppo is not None and self.ppo.pretraining is not None:
            raise ValueError("ppo.pretraining is set; the pretraining mix belongs to ppo_ptx")
        if self.ppo_ptx is not None and self.ppo_ptx.pretraining is None:
            raise ValueError(
                "ppo_ptx.pretraining is missing; without the mix it would be ppo again"
            )
        no_texts = isinstance(self.data, FileSource) and self.data.pretraining_texts is None
        mixes = {
            "sft.pretraining": self.sft and self.sft.pretraining,
            "ppo_init.pretraining": self.ppo_init and self.ppo_init.pretraining,
            "ppo_ptx": self.ppo_ptx,
        }
        for name, mix in mixes.items():
            if mix is not None and no_texts:
                raise ValueError(
                    f"{name} is set but data.pretraining_texts is not: there is nothing to mix in"
                )
        return self

    @model_validator(mode="after")
    def a_joint_pass_is_of_one_model(self) -> Self:
        """Hold `models.kind: joint` to a reward model that is a probe on what PPO starts from."""
        for name, chosen in (("ppo", self.ppo), ("ppo_ptx", self.ppo_ptx)):
            if chosen is None or chosen.models.kind != "joint":
                continue
            for key, value, expected in (
                (
                    "reward.adaptation.family",
                    "null" if self.reward is None else self.reward.adaptation.family,
                    "probe",
                ),
                ("reward_base", self.reward_base, "sft"),
                ("sft.adaptation.family", self.sft_adaptation.family, "full"),
                ("sft_choice", self.sft_choice, "loss"),
                ("ppo_init", "null" if self.ppo_init is None else "set", "null"),
            ):
                if value != expected:
                    raise ValueError(
                        f"{name}.models.kind is joint but {key} is {value}; expected {expected}: "
                        "the reward model must be a probe on the very model that PPO starts from"
                    )
        return self

    @model_validator(mode="after")
    def the_quickstarts_judge_and_annotators_know_only_its_prompts(self) -> Self:
        """Refuse them on prompts that the quickstart did not make."""
        if self.data.kind == "quickstart":
            return self
        for name, chosen in (("ppo", self.ppo), ("ppo_ptx", self.ppo_ptx)):
            rule = None if chosen is None else chosen.overoptimization
            if rule is not None and rule.gold_reward == "judge":
                raise ValueError(
                    f"{name}.overoptimization.gold_reward is 'judge' but data.kind is "
                    f"'{self.data.kind}': the judge "
                    "knows the quickstart's prompts only; expected the folder of a reward model"
                )
        if self.labeling.kind == "simulated" and self.reward is not None:
            raise ValueError(
                f"labeling.kind is 'simulated' but data.kind is '{self.data.kind}': simulated "
                "annotators can judge the quickstart's prompts only; expected human or imported"
            )
        return self

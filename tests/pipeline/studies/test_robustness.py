"""The robustness suite: two domains, families against full fine-tuning, and going on."""

import csv
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from sacrebleu.metrics.bleu import BLEU

from pipeline.evaluation.samples.records import Completion
from pipeline.runs.display import PlainDisplay
from pipeline.studies.public_data import E2ESizes, write_e2e
from pipeline.studies.robustness.command import load_robustness, write_robustness_page
from pipeline.studies.robustness.config import REFERENCES, QuickstartDomains, RobustnessConfig
from pipeline.studies.robustness.suite import (
    BASE,
    IN,
    OUT,
    Robustness,
    RougeL,
    corpus_bleu,
    reference_nats,
    run_suite,
)
from reward_models.atomic_files import write_jsonl
from stages.models import load_policy, load_tokenizer
from tests.reward_models.tiny import tiny_base

CONFIGS = Path(__file__).parents[3] / "configs/robustness"


def row(completion: str, *references: str, number: int = 0) -> Completion:
    return Completion(
        f"p{number}", "m", "w0 w1", completion, prompt_extra={REFERENCES: list(references)}
    )


def test_rouge_l_is_the_best_over_references():
    # the longest common subsequence of "a b c d" and "a c d e" is "a c d": F = 3/4
    scores = RougeL().score([row("a b c d", "x y", "a c d e"), row("a b", "a b")])
    assert [one["rouge_l"] for one in scores if one] == pytest.approx([0.75, 1.0])


def test_bleu_is_a_hundred_for_a_reference_and_its_interval_holds_it():
    rows = [row(f"the {n} small cats sat", "no", f"the {n} small cats sat") for n in range(5)]
    assert corpus_bleu(rows, resamples=20, seed=0) == (
        pytest.approx(100),
        pytest.approx((100, 100)),
    )
    mixed = [*rows, row("not at all like it", "some other words here")]
    value, (low, high) = corpus_bleu(mixed, resamples=50, seed=0)
    assert low < value < high


def test_bleu_is_sacrebleus_own_over_rows_with_several_references():
    rng = random.Random(0)
    rows = [
        row(*(" ".join(rng.choices("abcd", k=rng.randint(4, 9))) for _ in range(1 + n % 3 + 1)))
        for n in range(20)
    ]
    references = [list(one.prompt_extra[REFERENCES]) for one in rows]
    streams = [
        [texts[index] if index < len(texts) else None for texts in references] for index in range(3)
    ]
    expected = BLEU().corpus_score([one.completion for one in rows], streams).score
    assert corpus_bleu(rows, resamples=1, seed=0)[0] == pytest.approx(expected)


def test_reference_nats_are_the_mean_over_the_references_tokens(tmp_path):
    base = tiny_base(tmp_path / "base")
    model, tokenizer = load_policy(base), load_tokenizer(base)
    [scores] = reference_nats(model, tokenizer, [row("", "w2 good")])
    ids = tokenizer("w0 w1\n")["input_ids"] + tokenizer("w2 good")["input_ids"] + [1]
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = -sum(logp[index - 1, ids[index]] for index in (2, 3, 4)) / 3
    assert scores is not None
    assert scores["nats_per_token"] == pytest.approx(float(expected), abs=1e-5)


def test_the_quickstarts_domains_share_no_person_and_no_prompt():
    domains = QuickstartDomains(demonstrations=60, test_prompts=40).load()
    trained = {one.prompt for one in domains.train if one.category == "closed_qa"}
    assert trained
    assert not trained & {one.prompt for one in domains.out_of_domain}
    names = [
        {one.extra["world"].get("name") for one in side if one.category == "closed_qa"}
        for side in (domains.in_domain, domains.out_of_domain)
    ]
    assert names[0]
    assert not names[0] & names[1]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RobustnessConfig:
    """Two families on a tiny base: in the domain the answer is the prompt's word, beyond it not."""
    folder, rng = tmp_path_factory.mktemp("robustness"), random.Random(0)

    def rows(count: int, words: range, answer: str) -> list[dict[str, object]]:
        prompts = [" ".join(f"w{rng.choice(words)}" for _ in range(3)) for _ in range(count)]
        return [{"prompt": prompt, "response": answer} for prompt in prompts]

    for name, made in {
        "train": rows(64, range(10), "good"),
        "validation": rows(8, range(10), "good"),
        "in_domain": rows(10, range(10), "good"),
        "out_of_domain": rows(10, range(10, 20), "bad"),
    }.items():
        write_jsonl(folder / f"{name}.jsonl", made)
    names = ("train", "validation", "in_domain", "out_of_domain")
    return RobustnessConfig.model_validate(
        {
            "model": str(tiny_base(folder / "base")),
            "seeds": [0],
            "data": {"kind": "files", **{name: str(folder / f"{name}.jsonl") for name in names}},
            "sft": {"epochs": 2, "learning_rate": 2e-2, "batch_size": 8, "dropout": 0.0},
            "families": {
                "full": {},
                "lora": {
                    "adaptation": {"family": "lora", "rank": 2},
                    "learning_rate": 1e-1,
                },
            },
            "sampling": {"temperature": 0.0, "max_new_tokens": 4},
            "resamples": 200,
            "sign_flips": 200,
        }
    )


@pytest.fixture(scope="module")
def done(
    config: RobustnessConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Robustness]:
    folder = tmp_path_factory.mktemp("done")
    return folder, run_suite(config, folder, PlainDisplay())


def test_families_learn_their_domain_and_not_the_other(done):
    folder, result = done
    inside, outside = (result.cell("full", domain, "rouge_l") for domain in (IN, OUT))
    assert inside is not None
    assert outside is not None
    assert (inside.value, inside.n, outside.value) == (1.0, 10, 0.0)
    for family, factor in (("full", 0.5), ("lora", 0.99)):  # an untrained base adapts little
        before, after = (result.cell(name, IN, "nats_per_token") for name in (BASE, family))
        assert before is not None
        assert after is not None
        assert after.value < factor * before.value
    assert 0 < result.share("lora") < result.share("full") == 1.0
    assert {one.a for one in result.differences} == {BASE, "lora"}
    assert not list(folder.rglob("*.safetensors"))  # what was trained has answered


def test_the_page_names_each_family_in_each_figure(config, done, tmp_path):
    page = tmp_path / "robustness.html"
    write_robustness_page(page, config, done[1])
    assert page.read_text().count('class="name"') == 4  # two families, two measures


class Trains(Exception):  # noqa: N818 - it is no error
    """Training began."""


def test_the_same_suite_again_trains_nothing_and_other_settings_train_anew(
    config, done, tmp_path, monkeypatch
):
    def train(*_: object, **__: object) -> None:
        raise Trains

    monkeypatch.setattr("pipeline.studies.robustness.suite.train_sft", train)
    folder = shutil.copytree(done[0], tmp_path / "again")
    assert run_suite(config, folder, PlainDisplay()).cells == done[1].cells
    longer = config.model_copy(update={"sft": config.sft.model_copy(update={"epochs": 9})})
    with pytest.raises(Trains):
        run_suite(longer, folder, PlainDisplay())


@pytest.mark.parametrize("name", ["quickstart", "e2e", "prompts"])
def test_the_shipped_configs_are_valid(name):
    assert "full" in load_robustness(CONFIGS / f"{name}.yaml", ()).families


def test_a_suite_without_full_fine_tuning_is_refused():
    with pytest.raises(ValueError, match=r"quickstart\.yaml: .*expected one named 'full'"):
        load_robustness(CONFIGS / "quickstart.yaml", ["families.full.adaptation.family=lora"])


def test_e2e_becomes_two_domains_with_all_references(tmp_path):
    def write(path: Path, kinds: list[str], count: int) -> Path:
        with path.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["mr", "ref"])
            for kind in kinds:
                for number in range(count):
                    for text in ("a", "b"):
                        writer.writerow([f"name[{number}], eatType[{kind}]", f"{text} {number}"])
        return path

    dev = write(tmp_path / "dev.csv", ["coffee shop", "pub"], 12)
    test = write(tmp_path / "test.csv", ["coffee shop", "pub", "restaurant"], 4)
    write_e2e(dev, test, tmp_path / "e2e", E2ESizes(train=6, validation=2, test=4))
    parts = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "e2e").glob("*.jsonl")
    }
    assert {name: len(rows) for name, rows in parts.items()} == {
        "train": 6,
        "validation": 2,
        "in_domain": 4,
        "out_of_domain": 4,
    }
    seen = [row["prompt"] for name in ("train", "validation", "in_domain") for row in parts[name]]
    assert len(set(seen)) == 12
    assert all("coffee shop" in prompt for prompt in seen)
    assert not any("coffee shop" in row["prompt"] for row in parts["out_of_domain"])
    assert all(len(row["references"]) == 2 for row in parts["in_domain"])
    with pytest.raises(ValueError, match="expected 236 and 4"):
        write_e2e(dev, test, tmp_path / "e2e", E2ESizes(train=200, validation=32, test=4))

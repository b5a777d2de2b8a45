"""Classifiers of the hub's kind as scorers, by tiny local ones, and what they are worth."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from pipeline.config.evaluation import ClassifierConfig, EntailmentConfig, EvaluationConfig
from pipeline.evaluation.request import evaluation_config, scorer_settings
from pipeline.evaluation.samples.records import Completion, ScoredRows
from pipeline.evaluation.scorers.classifier import SequenceClassifier, ToxicityClassifier
from pipeline.evaluation.scorers.grounding import EntailmentScorer, LexicalSupport
from pipeline.evaluation.scorers.scorer import scored
from pipeline.evaluation.scorers.toxicity import ProfanityScorer
from pipeline.evaluation.suites.hallucination import hallucination_tables
from pipeline.evaluation.validity import grounding_validity, measured_validity

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "kind", "vile", "Bora", "bakes", "sings", "."]
SHARED = Path(__file__).parents[5] / "shared" / "data" / "eval"


def classifier(folder: Path, labels: list[str], problem: str | None = None) -> str:
    """A one-layer BERT whose last label is likelier where its input holds "vile"."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    )
    torch.manual_seed(0)
    config = BertConfig(  # type: ignore[call-arg]
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        problem_type=problem,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def rows(*texts: str) -> list[Completion]:
    return [
        Completion(
            id=t,
            model="m",
            prompt="p",
            completion=t,
            context="Bora bakes .",
            category="closed_qa",
            suite="test",
        )
        for t in texts
    ]


def logits(path: str, text: str) -> torch.Tensor:
    model = BertForSequenceClassification.from_pretrained(path).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    with torch.inference_mode():
        output: torch.Tensor = model(**tokenizer(text, return_tensors="pt")).logits[0]
    return output


def test_several_labels_at_once_get_a_sigmoid_each(tmp_path: Path):
    path = classifier(tmp_path, ["toxicity", "insult"], "multi_label_classification")
    scorer = ToxicityClassifier(ClassifierConfig(kind="classifier", model=path))
    expected = logits(path, "vile Bora").sigmoid().tolist()
    assert scorer.score(rows("vile Bora")) == [
        {"toxicity": pytest.approx(expected[0]), "insult": pytest.approx(expected[1])}
    ]


def test_labels_that_exclude_one_another_get_a_softmax(tmp_path: Path):
    path = classifier(tmp_path, ["nothate", "hate"])
    scorer = ToxicityClassifier(ClassifierConfig(kind="classifier", model=path))
    expected = logits(path, "kind Bora").softmax(-1).tolist()
    assert scorer.score(rows("kind Bora")) == [{"toxicity": pytest.approx(expected[1])}]


def test_a_text_scores_the_same_in_any_batch(tmp_path: Path):
    path = classifier(tmp_path, ["nothate", "hate"])
    alone = ToxicityClassifier(ClassifierConfig(kind="classifier", model=path, batch_size=1))
    batched = ToxicityClassifier(ClassifierConfig(kind="classifier", model=path, batch_size=8))
    texts = rows("vile", "kind kind kind Bora .", "Bora sings")
    for one, other in zip(alone.score(texts), batched.score(texts), strict=True):
        assert one is not None
        assert other is not None
        assert one["toxicity"] == pytest.approx(other["toxicity"], abs=1e-6)


def test_a_model_whose_labels_do_not_say_which_is_toxic_needs_to_be_told(tmp_path: Path):
    path = classifier(tmp_path, ["a", "b"])
    with pytest.raises(ValueError, match=r"which label says toxic.*one of a, b"):
        ToxicityClassifier(ClassifierConfig(kind="classifier", model=path))
    scorer = ToxicityClassifier(ClassifierConfig(kind="classifier", model=path, label="B"))
    assert scorer.column == 1


def test_no_model_there_is_one_line(tmp_path: Path):
    expected = {tmp_path: "no classifier to be had", tmp_path / "nowhere": "no such folder"}
    for source, message in expected.items():
        with pytest.raises(ValueError, match=message) as caught:
            SequenceClassifier.load(str(source))
        assert "\n" not in str(caught.value)


def test_a_classifier_says_what_it_is(tmp_path: Path):
    path = classifier(tmp_path / "toxic-bert", ["nothate", "hate"])
    scorer = ToxicityClassifier(ClassifierConfig(kind="classifier", model=path))
    assert (scorer.name, len(scorer.sha256), scorer.threshold) == ("toxic-bert", 64, 0.5)


def test_the_worst_sentence_decides_and_declining_claims_nothing(tmp_path: Path):
    path = classifier(tmp_path / "nli", ["contradiction", "neutral", "entailment"])
    scorer = EntailmentScorer(EntailmentConfig(model=path), ["closed_qa"])
    texts = ["Bora bakes.", "Bora sings.", "Bora bakes. Bora sings.", "The text does not say."]
    support = [score["support"] for score in scorer.score(rows(*texts)) if score]
    assert support[2] == pytest.approx(min(support[0] or 0, support[1] or 0), abs=1e-6)
    assert support[3] == 1.0
    open_question = [Completion(id="x", model="m", prompt="p", completion="Bora bakes.")]
    assert scorer.score(open_question) == [{}]


def test_the_rate_of_unsupported_answers_stands_among_the_tables(tmp_path: Path):
    path = classifier(tmp_path / "nli", ["contradiction", "neutral", "entailment"])
    config = EntailmentConfig(model=path, threshold=1.0)  # nothing is certain: all are unsupported
    judged = scored(
        rows("Bora bakes."),
        [EntailmentScorer(config, ["closed_qa"]), LexicalSupport(["closed_qa"])],
    )
    tables = hallucination_tables(ScoredRows.of(judged), ["m"], EvaluationConfig())
    (table,) = [t for t in tables if t.quantity.metric == "not_entailed"]
    assert (table.quantity.scorer, table.value_NM.tolist()) == ("nli nli", [[1.0]])


def test_the_command_line_names_scorers_by_kind_and_model():
    further = scorer_settings(["profanity", "classifier:org/toxic", "nli:some/nli"])
    config = evaluation_config(None, [], further)
    assert [each.kind for each in config.toxicity_scorers] == ["profanity", "classifier"]
    assert [each.model for each in config.entailment] == ["some/nli"]
    with pytest.raises(ValueError, match=r"toxicity_scorers\.0\.kind is 'klassifier'"):
        evaluation_config(None, [], scorer_settings(["klassifier:x"]))


def test_the_offline_scorer_is_calibrated_on_perspectives_scores():
    path = SHARED / "openai_public" / "real_toxicity_samples.csv"
    if not path.is_file():
        pytest.skip("OpenAI's released samples are not here (their licence does not let us ship)")
    config = EvaluationConfig(calibration=str(path))
    calibration = measured_validity(ScoredRows.of([]), {"": [ProfanityScorer()]}, config)[
        "calibration"
    ]
    assert calibration["alt-profanity-check"]["auroc"] == pytest.approx(0.8875, abs=0.001)
    assert calibration["alt-profanity-check"]["n"] == 3600


@pytest.mark.parametrize(("part", "novel"), [("wow", 0.906), ("tc", 0.896), ("cmu", 0.860)])
def test_measures_of_hallucination_say_how_far_they_see(part: str, novel: float):
    path = SHARED / "grounding" / f"begin_dev_{part}.tsv"
    if not path.is_file():
        pytest.skip("BEGIN's development sets are not here")
    validity = grounding_validity([LexicalSupport(["closed_qa"])], path, "closed_qa")
    area = {row["metric"]: row["auroc"] for row in validity}
    assert area["novel_bigrams"] == pytest.approx(novel, abs=0.002)
    assert 0.5 < area["unsupported"] < 0.6
    assert np.isfinite(area["unsupported"])

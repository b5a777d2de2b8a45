"""A model's name that leads nowhere is told in one line, at once."""

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipeline.estimate.known_shapes import model_config
from pipeline.evaluation.scorers.classifier import SequenceClassifier
from reward_models.backbone import load_causal_lm
from reward_models.model_files import check_source
from stages.models import load_policy, load_tokenizer
from stages.probing import load_frozen

LOADERS = [load_tokenizer, load_policy, load_causal_lm, load_frozen, model_config]


@contextmanager
def hub(status: int, error_code: str = "") -> Iterator[list[str]]:
    """The requests to a hub that gives every request the same answer."""
    requests: list[str] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(status)
            self.send_header("X-Error-Code", error_code)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "HF_HUB_OFFLINE", False)
            patch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
            yield requests
        server.shutdown()


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("load", [*LOADERS, SequenceClassifier.load])
def test_an_unreachable_hub_is_one_line(
    load: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(
        ValueError, match="nowhere: no such folder, and the hub cannot be"
    ) as caught:
        load("nowhere")
    assert "\n" not in str(caught.value)


def test_offline_mode_is_named_in_the_line():
    with pytest.raises(ValueError, match=r"hub cannot be reached .*offline mode"):
        check_source("nowhere")


def test_a_name_that_is_not_on_the_hub_is_refused():
    with (
        hub(404, "RepoNotFound") as requests,
        pytest.raises(ValueError, match="a/b: no such folder, and no such model on the hub"),
    ):
        check_source("a/b")
    assert requests == ["/api/models/a/b"]


def test_a_busy_hub_leaves_the_word_to_the_loader():
    with hub(503) as requests:
        check_source("a/b")
    assert len(requests) == 1


def test_what_is_in_the_cache_needs_no_hub(empty_cache: Path):
    (empty_cache / "models--a--b").mkdir()
    with hub(404, "RepoNotFound") as requests:
        check_source("a/b")
    assert requests == []

"""The settings of a labeling room, checked before anything is trained, and its service."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labeling_ui.formats.files import read_labels
from labeling_ui.forms import Form, load_form
from labeling_ui.reports.quality import Scores
from labeling_ui.store.records import flag_answers
from labeling_ui.store.store import Store
from labeling_ui.tasks.live import Live
from labeling_ui.tasks.overlap import AdaptiveOverlap, widen_all
from labeling_ui.tasks.queue import Mixing, Screening
from labeling_ui.web.sign_in import Access, Proxy
from pipeline.config.labeling import RoomSettings
from pipeline.config.shipped import find_config
from reward_models.records import Prompt, Ranking, RankingTask

STORE = "rankings.sqlite"  # of a run, in its folder
Flags = Mapping[str, Mapping[str, bool]]


@dataclass(frozen=True, slots=True)
class Gold:
    """Tasks whose right ranking is known, and known flags of their responses, by task."""

    tasks: Sequence[RankingTask]
    ranks: Mapping[str, Mapping[str, int]]
    flags: Mapping[str, Flags]
    lessons: Mapping[str, str] = field(default_factory=dict)  # explanations, of practice tasks

    def add_to(self, store: Store) -> None:
        """Add them to a store, for everybody to answer."""
        store.add_tasks(
            self.tasks, gold=self.ranks, gold_flags=self.flags, lessons=self.lessons or None
        )


def check_room(room: RoomSettings) -> None:
    """Raise ValueError for everything that would fail only once the room is served."""
    form_of(room)
    access_of(room)
    gold_of(room)
    practice_of(room)
    tls = room.tls
    for path in (tls.certificate, tls.key) if tls is not None else ():
        if not Path(path).is_file():
            raise ValueError(
                f"{path}: no such file; expected the certificate or key of labeling.tls"
            )
    if room.reward_model is not None and not Path(room.reward_model).is_dir():
        raise ValueError(f"{room.reward_model}: no such folder; expected a reward model")


def form_of(room: RoomSettings) -> Form | None:
    """Return the form that the config names; None for the paper's. ValueError if it is wrong."""
    return None if room.form is None else load_form(find_config(Path(room.form)) or Path(room.form))


def access_of(room: RoomSettings) -> Access | None:
    """Return the way to sign in; None leaves it to the address that is served."""
    if room.proxy is None:
        return room.access
    return Proxy(room.proxy.header, tuple(room.proxy.addresses), tuple(room.proxy.owners))


def gold_of(room: RoomSettings) -> Gold | None:
    """Return the gold tasks that the config names; ValueError if wrong or too few to screen."""
    if room.gold is None:
        return None
    path = Path(room.gold)
    tasks, right = _right(path, "gold")
    if room.screening is not None and len(tasks) < room.screening.tasks:
        raise ValueError(
            f"{path}: {len(tasks)} gold tasks, "
            f"but labeling.screening.tasks is {room.screening.tasks}"
        )
    ranks = {name: ranking.ranks for name, ranking in right.items()}
    flags = {name: flag_answers(ranking.to_json()) for name, ranking in right.items()}
    return Gold(tasks, ranks, flags)


def practice_of(room: RoomSettings) -> Gold | None:
    """Return the practice tasks that the config names; what `notes` of their ranking explains."""
    if room.practice is None:
        return None
    tasks, right = _right(Path(room.practice), "practice")
    ranks = {name: ranking.ranks for name, ranking in right.items()}
    lessons = {name: ranking.notes or "" for name, ranking in right.items()}
    return Gold(tasks, ranks, {}, lessons)


def _right(path: Path, kind: str) -> tuple[list[RankingTask], dict[str, Ranking]]:
    """Read a folder's tasks with the one right ranking of each."""
    tasks, rankings = read_labels(path, "jsonl")
    right = {ranking.task: ranking for ranking in rankings if ranking.skipped is None}
    missing = [task.id for task in tasks if task.id not in right]
    if missing:
        raise ValueError(f"{path}: {kind} task '{missing[0]}' has no ranking in rankings.jsonl")
    return tasks, right


def add_known(room: RoomSettings, store: Store) -> None:
    """Add the gold and practice tasks that the config names."""
    for known in (gold_of(room), practice_of(room)):
        if known is not None:
            known.add_to(store)


def serve_store(
    room: RoomSettings,
    store: Store,
    tasks: Sequence[RankingTask],
    *,
    live: Live | None = None,
    until: Callable[[], bool] | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Serve the room on a store that has its tasks, until interrupted or `until` returns true."""
    from labeling_ui.app import RoomOptions, serve

    mixing = Mixing(
        gold_share=room.gold_share if room.gold is not None else 0.0,
        categories=room.categories or None,
        screening=None if room.screening is None else Screening(**room.screening.model_dump()),
        practice=room.practice is not None,
    )
    scores = model_scores(room, tasks)
    options = RoomOptions(
        form=form_of(room),
        access=access_of(room),
        lease_s=60 * room.lease_minutes,
        mixing=mixing,
        tls=None if room.tls is None else (Path(room.tls.certificate), Path(room.tls.key)),
        behind_tls=room.behind_tls,
        scores=scores,
        overlap=overlap_of(room, scores),
        live=live,
    )
    if options.overlap is not None:
        widen_all(store, options.overlap)
    serve(store, options, host=room.host, port=room.port, log=log, until=until)


def overlap_of(room: RoomSettings, scores: Scores | None) -> AdaptiveOverlap | None:
    """Return the rule by which tasks get further people; None for a fixed number."""
    rule = room.adaptive_overlap
    return None if rule is None else AdaptiveOverlap(**rule.model_dump(), scores=scores)


def model_scores(
    room: RoomSettings, tasks: Sequence[RankingTask]
) -> dict[str, dict[str, float]] | None:
    """Return the scores of the config's reward model for every response; None without one."""
    if room.reward_model is None:
        return None
    from stages.generation.score import load_scorer, score_responses, scorer_tokenizer
    from stages.precision import inference_weights

    model = load_scorer(room.reward_model, weights=inference_weights())
    tokenizer = scorer_tokenizer(model, room.reward_model)
    flat = [(task, response) for task in tasks for response in task.responses]
    scores = score_responses(
        model,
        tokenizer,
        [Prompt(task.prompt, context=task.context, history=task.history) for task, _ in flat],
        [response.text for _, response in flat],
    )
    by_task: dict[str, dict[str, float]] = {}
    for (task, response), score in zip(flat, scores, strict=True):
        by_task.setdefault(task.id, {})[response.id] = score
    return by_task

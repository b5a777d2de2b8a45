"""The statements of every draft and submit, built once: that costs more than running them."""

from typing import Any

from sqlalchemy import BindParameter, and_, bindparam, case, delete, func, or_, select, update

from labeling_ui.store.tables import answers, drafts, leases, tasks

_ANNOTATOR: BindParameter[str] = bindparam("annotator")
_TASK: BindParameter[str] = bindparam("task")
_NOW: BindParameter[float] = bindparam("now")


def _taken() -> Any:
    """What makes a lease take a place: it is answered, or it lives."""
    living = and_(leases.c.state == "held", leases.c.expires > _NOW)
    return or_(leases.c.state == "done", living)


# annotator
HELD_BY = (
    select(leases)
    .where(leases.c.annotator == _ANNOTATOR, leases.c.state == "held")
    .order_by(leases.c.time.desc())
    .limit(1)
)
# annotator, token
LEASE_OF_TOKEN = select(leases).where(
    leases.c.token == bindparam("token"), leases.c.annotator == _ANNOTATOR
)
# task
TASK = select(tasks).where(tasks.c.id == _TASK)
# annotator, task
DRAFT = select(drafts).where(drafts.c.task == _TASK, drafts.c.annotator == _ANNOTATOR)
DROP_DRAFT = delete(drafts).where(drafts.c.task == _TASK, drafts.c.annotator == _ANNOTATOR)
LATEST_ANSWER = select(answers).where(
    answers.c.task == _TASK, answers.c.annotator == _ANNOTATOR, answers.c.is_latest == 1
)
# form
ANSWER_OF_FORM = select(answers.c.id).where(answers.c.form == bindparam("form"))
# annotator, task, now: whether a place is left, others' living leases and answers counted
_OTHERS = select(func.count()).where(
    leases.c.task == _TASK, leases.c.annotator != _ANNOTATOR, _taken()
)
IS_FREE = select(or_(tasks.c.gold.is_not(None), tasks.c.overlap > _OTHERS.scalar_subquery())).where(
    tasks.c.id == _TASK
)
# of (a token), to (a state); hold also: until
SET_STATE = update(leases).where(leases.c.token == bindparam("of")).values(state=bindparam("to"))
HOLD = (
    update(leases)
    .where(leases.c.token == bindparam("of"))
    .values(state="held", expires=bindparam("until"))
)
# annotator, midnight: how many answers in all, and since then
_TODAY = func.sum(case((answers.c.time >= bindparam("midnight"), 1), else_=0))
ANSWERED = select(func.count(), func.coalesce(_TODAY, 0)).where(
    answers.c.annotator == _ANNOTATOR, answers.c.is_latest == 1, answers.c.is_skip == 0
)

# Open tasks that this person never had, the next one first: annotator; ordinary ones also: now
_SEEN = select(leases.c.task).where(leases.c.annotator == _ANNOTATOR)
_NEW = (
    select(tasks)
    .where(tasks.c.is_open == 1, tasks.c.id.not_in(_SEEN))
    .order_by(tasks.c.priority.desc(), tasks.c.position)
    .limit(1)
)
_HELD = select(func.count()).where(leases.c.task == tasks.c.id, _taken()).correlate(tasks)
NEXT_GOLD = _NEW.where(tasks.c.gold.is_not(None))
NEXT = _NEW.where(tasks.c.gold.is_(None), _HELD.scalar_subquery() < tasks.c.overlap)
NEXT_OF_CATEGORY = NEXT.where(tasks.c.category == bindparam("category"))

"""Tasks that a person asks for by name, and that nobody is handed by chance."""

import json
import secrets

from sqlalchemy import and_, func, insert, or_, select

from labeling_ui.store.tables import leases, tasks
from labeling_ui.tasks.assignment import Assignment, Lease, LeaseError


def take_task(assignment: Assignment, annotator: str, task_id: str) -> Lease:
    """Lease this person this task before all others; LeaseError if there is no place in it."""
    store, now = assignment.store, assignment.store.clock()
    with store.database.write() as connection:
        task = connection.execute(select(tasks).where(tasks.c.id == task_id)).first()
        if task is None:
            raise LeaseError("there is no such task")
        here = leases.c.task == task_id
        mine = select(leases.c.token).where(here, leases.c.annotator == annotator)
        token = connection.execute(mine).scalar()
        living = and_(leases.c.state == "held", leases.c.expires > now)
        others = here & (leases.c.annotator != annotator) & or_(leases.c.state == "done", living)
        query = select(func.count()).select_from(leases).where(others)
        if token is None and connection.execute(query).scalar_one() >= task.overlap:
            raise LeaseError("others have taken this task meanwhile")
        fresh = secrets.token_urlsafe(12)
        if token is None:
            shown = [response["id"] for response in json.loads(task.record).get("responses", [])]
            assignment.rng.shuffle(shown)
            row = {"task": task_id, "annotator": annotator, "token": fresh}
            when = {"state": "held", "expires": now + assignment.lease_s, "time": now}
            connection.execute(insert(leases).values(**row, **when, shown=json.dumps(shown)))
            store.log(connection, annotator, "lease", task_id, {})
    if token is None:
        return assignment.look_up(annotator, fresh)
    return assignment.reopen(annotator, token)

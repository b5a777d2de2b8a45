-- What is asked, who works on it, what was answered, and a log that only grows.
-- {identity} is the dialect's way to number rows. JSON is text, so that both databases keep it byte for byte.

CREATE TABLE tasks (
    id TEXT PRIMARY KEY,
    position INTEGER NOT NULL,            -- order of arrival
    kind TEXT NOT NULL,                   -- 'ranking', 'demonstration', ...
    category TEXT,
    record TEXT NOT NULL,                 -- the task's JSON object
    overlap INTEGER NOT NULL,             -- how many people are to answer it
    priority INTEGER NOT NULL,            -- higher comes first
    gold TEXT,                            -- ranks by response id, where the right answer is known
    is_open INTEGER NOT NULL              -- 0 once it has its answers, or was withdrawn
);
CREATE INDEX tasks_open ON tasks (is_open, priority, position);

CREATE TABLE answers (
    id {identity},
    task TEXT NOT NULL REFERENCES tasks (id),
    annotator TEXT NOT NULL,
    version INTEGER NOT NULL,             -- 1, then one more for each amendment
    source TEXT NOT NULL,                 -- 'human', 'simulated', 'imported'
    record TEXT NOT NULL,                 -- the answer's JSON object
    form TEXT,                            -- names one filled-in form: it is stored once however often it is sent
    is_latest INTEGER NOT NULL,
    is_skip INTEGER NOT NULL,
    is_surplus INTEGER NOT NULL,          -- came late, after the task had its answers: kept, not counted
    time DOUBLE PRECISION NOT NULL,       -- seconds since 1970, UTC
    UNIQUE (task, annotator, version),
    UNIQUE (form)
);
CREATE INDEX answers_annotator ON answers (annotator, is_latest, time);

CREATE TABLE leases (
    task TEXT NOT NULL REFERENCES tasks (id),
    annotator TEXT NOT NULL,
    token TEXT NOT NULL UNIQUE,           -- what the page knows the task by
    state TEXT NOT NULL,                  -- 'held', 'done', 'skipped', 'expired'
    expires DOUBLE PRECISION NOT NULL,    -- seconds since 1970, UTC
    shown TEXT NOT NULL,                  -- response ids in the order this annotator sees them
    time DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (task, annotator)
);
CREATE INDEX leases_annotator ON leases (annotator, state);

CREATE TABLE drafts (
    task TEXT NOT NULL REFERENCES tasks (id),
    annotator TEXT NOT NULL,
    revision INTEGER NOT NULL,            -- an older one never overwrites a newer one
    writer TEXT NOT NULL,                 -- the browser tab it came from
    body TEXT NOT NULL,
    time DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (task, annotator)
);

CREATE TABLE events (
    id {identity},
    time DOUBLE PRECISION NOT NULL,
    actor TEXT NOT NULL,
    kind TEXT NOT NULL,
    task TEXT,
    data TEXT NOT NULL
);

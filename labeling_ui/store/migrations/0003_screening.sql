-- Who may work on: what gold tasks said about a person before anything else was handed out.

ALTER TABLE tasks ADD COLUMN gold_flags TEXT;  -- known answers by response id and flag, where there are any

CREATE TABLE screenings (
    annotator TEXT PRIMARY KEY,
    verdict TEXT NOT NULL,                -- 'passed', 'failed', or 'admitted' by the owner
    data TEXT NOT NULL,                   -- the shares that led to it
    time DOUBLE PRECISION NOT NULL
);

DROP INDEX tasks_open;
CREATE INDEX tasks_next ON tasks (is_open, priority DESC, position);  -- the order of handing out

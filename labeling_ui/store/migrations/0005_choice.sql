-- What comes next, and what teaches: the order that a reward model gives, and practice tasks.

ALTER TABLE tasks ADD COLUMN urgency DOUBLE PRECISION NOT NULL DEFAULT 0;  -- within a priority, higher comes first
ALTER TABLE tasks ADD COLUMN lesson TEXT;  -- of a practice task: what its right order is explained by, after the answer

DROP INDEX tasks_next;
CREATE INDEX tasks_next ON tasks (is_open, priority DESC, urgency DESC, position);  -- the order of handing out

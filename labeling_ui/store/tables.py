"""The tables that `migrations/` makes, as SQLAlchemy sees them; a test holds the two together."""

from sqlalchemy import Column, Float, Integer, MetaData, Table, Text

metadata = MetaData()

tasks = Table(
    "tasks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("position", Integer),
    Column("kind", Text),
    Column("category", Text),
    Column("record", Text),
    Column("overlap", Integer),
    Column("priority", Integer),
    Column("gold", Text),
    Column("gold_flags", Text),
    Column("is_open", Integer),
)
answers = Table(
    "answers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task", Text),
    Column("annotator", Text),
    Column("version", Integer),
    Column("source", Text),
    Column("record", Text),
    Column("form", Text),
    Column("is_latest", Integer),
    Column("is_skip", Integer),
    Column("is_surplus", Integer),
    Column("time", Float),
)
leases = Table(
    "leases",
    metadata,
    Column("task", Text, primary_key=True),
    Column("annotator", Text, primary_key=True),
    Column("token", Text),
    Column("state", Text),
    Column("expires", Float),
    Column("shown", Text),
    Column("time", Float),
)
drafts = Table(
    "drafts",
    metadata,
    Column("task", Text, primary_key=True),
    Column("annotator", Text, primary_key=True),
    Column("revision", Integer),
    Column("writer", Text),
    Column("body", Text),
    Column("time", Float),
)
events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("time", Float),
    Column("actor", Text),
    Column("kind", Text),
    Column("task", Text),
    Column("data", Text),
)
accounts = Table(
    "accounts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("role", Text),
    Column("password", Text),
    Column("is_active", Integer),
    Column("daily_limit", Integer),
    Column("time", Float),
)
sessions = Table(
    "sessions",
    metadata,
    Column("token_hash", Text, primary_key=True),
    Column("account", Text),
    Column("expires", Float),
)
invitations = Table(
    "invitations",
    metadata,
    Column("token_hash", Text, primary_key=True),
    Column("role", Text),
    Column("expires", Float),
    Column("used_by", Text),
)
settings = Table(
    "settings",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text),
)
screenings = Table(
    "screenings",
    metadata,
    Column("annotator", Text, primary_key=True),
    Column("verdict", Text),
    Column("data", Text),
    Column("time", Float),
)

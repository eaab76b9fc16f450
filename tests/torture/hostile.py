"""What an editor, or a stranger, may do to a database: rows changed by hand, and definitions that run something."""

from __future__ import annotations

import json

DEEP = "[" * 100_000
WIDE = json.dumps(
    {
        "codec": 1,
        "fields": [{"path": [f"f{i}"], "kind": "array", "dtype": "<f4", "shape": []} for i in range(200_000)],
    },
    separators=(",", ":"),
)
EDITS = {
    "extra": "UPDATE episode SET extra = '{' WHERE id = (SELECT max(id) FROM episode)",
    "deep extra": f"UPDATE episode SET extra = '{DEEP}' WHERE id = (SELECT max(id) FROM episode)",
    "timestamp": "UPDATE episode SET timestamp = timestamp + 1 WHERE id = (SELECT max(id) FROM episode)",
    "infinite time": "UPDATE episode SET timestamp = 9e999 WHERE id = (SELECT max(id) FROM episode)",
    "level": "UPDATE episode SET level = 77 WHERE id = (SELECT max(id) FROM episode)",
    "key": "UPDATE episode SET key = 'other' WHERE id = (SELECT max(id) FROM episode WHERE key IS NOT NULL)",
    "key's id": "UPDATE episode_key SET episode_id = 5 WHERE key = 'key-3-0'",
    "tag": "UPDATE episode_tag SET tag = 'even' WHERE tag = 'odd'",
    "domain of an episode": "UPDATE episode SET domain_id = 99 WHERE id = (SELECT max(id) FROM episode)",
    "name of a domain": "UPDATE domain SET name = 'mathematics' WHERE name = 'math'",
    "number of domains": "UPDATE buffer SET domains = 1000000000",
    "capacity": "UPDATE buffer SET capacity = 100",
    "negative capacity": "UPDATE buffer SET capacity = -5",
    "epsilon": "UPDATE buffer SET epsilon = 0.5",
    "eviction": "UPDATE buffer SET eviction = 'sideways'",
    "strategy": 'UPDATE buffer SET strategy = \'{"name": "uniform"\'',
    "unknown strategy": 'UPDATE buffer SET strategy = \'{"name": "none"}\'',
    "deep strategy": f"UPDATE buffer SET strategy = '{DEEP}'",
    "history": "UPDATE buffer SET history = '{\"record\": NaN}'",
    "limiter": "UPDATE buffer SET limiter = '[]'",
    "seed": "UPDATE buffer SET seed = -1",
    "signature": "UPDATE buffer SET signature = 'x'",
    "wide signature": f"UPDATE buffer SET signature = '{WIDE}'",
    "inserted": "UPDATE buffer SET inserted = inserted + 1",
    "high water": "UPDATE buffer SET high_water = 9e999",
    "events": "UPDATE buffer SET events = events + 4",
    "count of a block": "UPDATE block SET live = 30000",
    "negative count": "UPDATE block SET live = -1",
    "sum of a block": "UPDATE block SET weight_sum = weight_sum * 1.000000001 WHERE weight_sum > 0",
    "domain of a block": "UPDATE block SET domain_id = 900000000000 WHERE id = 1",
    "unit": "UPDATE block SET unit = 1024",
    "missing block": "DELETE FROM block WHERE id = 1",
    "token": "UPDATE buffer SET token = token + 1",
    "loss": "UPDATE replay_metadata SET loss = loss * 1.0000001, lowest_loss = lowest_loss * 1.0000001",
    "lowest loss": "UPDATE replay_metadata SET lowest_loss = lowest_loss / 2 WHERE lowest_loss > 0",
    "last replay": "UPDATE replay_metadata SET last_replayed_at = last_replayed_at + 1",
    "replays": "UPDATE replay_metadata SET replay_count = replay_count + 1",
    "payload": "DELETE FROM payload WHERE episode_id = (SELECT max(episode_id) FROM payload)",
    "facts": "DELETE FROM episode WHERE id = (SELECT max(id) FROM episode)",
    "cycle": "UPDATE replay_event SET previous_id = id WHERE previous_id IS NOT NULL",
    "longer cycle": "UPDATE replay_event SET previous_id = 96 - id WHERE previous_id IS NOT NULL",
    "loss in an event": "UPDATE replay_event SET loss_after = loss_after + 1 WHERE id = 9",
    "time of a group": "UPDATE event_group SET at = at + 1 WHERE id = 1",
    "count of a group": "UPDATE event_group SET count = 1000000000000 WHERE id = 1",
    "tally": "UPDATE replay_tally SET loss_sum = loss_sum * 1.000001",
    "tally's replays": "UPDATE replay_tally SET replays = replays + 1",
    "tally's domain": "UPDATE replay_tally SET domain_id = 70 WHERE domain_id = 1",
    "checkpoint": "UPDATE checkpoint SET document = '{}' WHERE name = 'latest'",
    "generator": "UPDATE checkpoint SET rng = '[]' WHERE name = 'latest'",
    "time of a checkpoint": "UPDATE checkpoint SET created_at = created_at + 1000 WHERE name = 'latest'",
}
"""What is changed by hand; the same text for both databases."""

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
HOSTILE = {
    "trigger": ["CREATE TRIGGER spy AFTER INSERT ON payload BEGIN DELETE FROM episode; END"],
    "view": ["ALTER TABLE buffer RENAME TO old", f"CREATE VIEW BUFFER AS {ENDLESS} SELECT * FROM n"],
    "version view": [
        "ALTER TABLE memstore_version RENAME TO old",
        f"CREATE VIEW memstore_version AS {ENDLESS} SELECT i AS version_num FROM n",
    ],
    "virtual table": ["DROP TABLE limiter", "CREATE VIRTUAL TABLE limiter USING fts5(buffer_id, drawn)"],
    "check": [
        "DROP TABLE limiter",
        "CREATE TABLE limiter (buffer_id INTEGER PRIMARY KEY, drawn INTEGER CHECK (length(hex(zeroblob(drawn))) > 0))",
    ],
    "generated": ["ALTER TABLE domain ADD COLUMN size INTEGER GENERATED ALWAYS AS (length(name)) VIRTUAL"],
    "expression": ["CREATE INDEX slow ON episode (length(key))"],
    "missing table": ["DROP TABLE lease"],
    "other view": ["DROP VIEW v_domain", "CREATE VIEW v_domain AS SELECT 1 AS buffer"],
}

CREATE TABLE checkpoint (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    generation INTEGER NOT NULL
);
INSERT INTO checkpoint (one, generation) VALUES (1, 0);

CREATE TABLE checkpoint_position (
    partition INTEGER NOT NULL PRIMARY KEY,
    position INTEGER NOT NULL
);

CREATE TABLE series (name TEXT NOT NULL PRIMARY KEY) WITHOUT ROWID;

-- In the order in which queries read it.
CREATE TABLE bucket (
    tier_s INTEGER NOT NULL,
    series TEXT NOT NULL,
    bucket_s INTEGER NOT NULL,
    key TEXT NOT NULL,
    count INTEGER NOT NULL,
    value_count INTEGER NOT NULL,
    sum REAL NOT NULL,
    min REAL NOT NULL,
    max REAL NOT NULL,
    users BLOB NOT NULL,
    quantiles BLOB NOT NULL,
    PRIMARY KEY (tier_s, series, bucket_s, key)
) WITHOUT ROWID;

CREATE TABLE user_page (
    user_id TEXT NOT NULL,
    page_url TEXT NOT NULL,
    event_type TEXT NOT NULL,
    count INTEGER NOT NULL,
    last_us INTEGER NOT NULL,
    PRIMARY KEY (user_id, page_url, event_type)
) WITHOUT ROWID;

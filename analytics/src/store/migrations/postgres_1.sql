CREATE TABLE checkpoint (
    one SMALLINT NOT NULL PRIMARY KEY CHECK (one = 1),
    generation BIGINT NOT NULL
);
INSERT INTO checkpoint (one, generation) VALUES (1, 0);

CREATE TABLE checkpoint_position (
    partition INTEGER NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL
);

CREATE TABLE series (name TEXT NOT NULL PRIMARY KEY);

-- In the order in which queries read it. Keys of pages may be long: the index holds a digest of them.
CREATE TABLE bucket (
    tier_s INTEGER NOT NULL,
    series TEXT NOT NULL,
    bucket_s BIGINT NOT NULL,
    key_digest UUID NOT NULL,
    key TEXT NOT NULL,
    count BIGINT NOT NULL,
    value_count BIGINT NOT NULL,
    sum DOUBLE PRECISION NOT NULL,
    min DOUBLE PRECISION NOT NULL,
    max DOUBLE PRECISION NOT NULL,
    users BYTEA NOT NULL,
    quantiles BYTEA NOT NULL,
    PRIMARY KEY (tier_s, series, bucket_s, key_digest)
);

CREATE TABLE user_page (
    user_id TEXT NOT NULL,
    page_digest UUID NOT NULL,
    page_url TEXT NOT NULL,
    event_type TEXT NOT NULL,
    count BIGINT NOT NULL,
    last_us BIGINT NOT NULL,
    PRIMARY KEY (user_id, page_digest)
);

CREATE TABLE chain (
    partition INTEGER NOT NULL PRIMARY KEY,
    base BIGINT NOT NULL,
    head BIGINT NOT NULL,
    delta_position BIGINT NOT NULL,
    counted BIGINT NOT NULL,
    duplicate BIGINT NOT NULL,
    late BIGINT NOT NULL,
    dead_lettered BIGINT NOT NULL,
    missing BIGINT NOT NULL,
    no_record BIGINT NOT NULL,
    valid_batches BIGINT NOT NULL,
    void_batches BIGINT NOT NULL,
    watermark_us BIGINT NOT NULL,
    as_of_us BIGINT NOT NULL
);

CREATE TABLE delta (
    partition INTEGER NOT NULL,
    delta_offset BIGINT NOT NULL,
    payload BYTEA NOT NULL,
    PRIMARY KEY (partition, delta_offset)
);

-- The store has two sets of rows. One is served; the other is a rebuild's, or what was served before.
CREATE TABLE served (
    one SMALLINT NOT NULL PRIMARY KEY CHECK (one = 1),
    slot BIGINT NOT NULL CHECK (slot IN (0, 1))
);
INSERT INTO served (one, slot) VALUES (1, 0);

-- The rebuild under way, if any; what has expired is nobody's.
CREATE TABLE rebuild_lock (
    one SMALLINT NOT NULL PRIMARY KEY CHECK (one = 1),
    owner BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL
);

-- From here on the rebuild under way needs the deltas.
CREATE TABLE delta_pin (
    partition INTEGER NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL
);

-- The second set of rows.
CREATE TABLE checkpoint_1 (LIKE checkpoint INCLUDING ALL);
INSERT INTO checkpoint_1 (one, generation) VALUES (1, 0);
CREATE TABLE checkpoint_position_1 (LIKE checkpoint_position INCLUDING ALL);
CREATE TABLE series_1 (LIKE series INCLUDING ALL);
CREATE TABLE bucket_1 (LIKE bucket INCLUDING ALL);
CREATE TABLE user_page_1 (LIKE user_page INCLUDING ALL);

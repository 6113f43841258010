-- The store has two sets of rows. One is served; the other is a rebuild's, or what was served before.
CREATE TABLE served (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    slot INTEGER NOT NULL CHECK (slot IN (0, 1))
);
INSERT INTO served (one, slot) VALUES (1, 0);

-- The rebuild under way, if any; what has expired is nobody's.
CREATE TABLE rebuild_lock (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    owner INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
);

-- From here on the rebuild under way needs the deltas.
CREATE TABLE delta_pin (
    partition INTEGER NOT NULL PRIMARY KEY,
    position INTEGER NOT NULL
);

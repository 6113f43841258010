-- Source offsets whose batches retention removed unread, and where in metrics-data the latest hole was found.
ALTER TABLE chain ADD COLUMN holes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE chain ADD COLUMN hole_at BIGINT NOT NULL DEFAULT 0;

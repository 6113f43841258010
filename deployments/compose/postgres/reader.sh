#!/usr/bin/env bash
# Runs once, when the database is made: a role for Grafana that reads everything and changes nothing.
set -euo pipefail
# psql reads the password from the file itself, so that it is in no list of processes.
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\set password `cat /run/secrets/grafana_postgres_password`
CREATE ROLE streamgauge_reader LOGIN PASSWORD :'password';
GRANT pg_read_all_data TO streamgauge_reader;
ALTER ROLE streamgauge_reader SET default_transaction_read_only = on;
ALTER ROLE streamgauge_reader SET statement_timeout = '30s';
SQL

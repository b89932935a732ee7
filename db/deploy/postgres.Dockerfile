# PostgreSQL with barman's programs for clouds, which archive it to a bucket (backup.sh). compose.backup.yaml builds it.
FROM postgres:16-bookworm
# the versions that the tests run (.ci/run)
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends python3-venv \
  && rm -rf /var/lib/apt/lists/* \
  && python3 -m venv /opt/barman \
  && /opt/barman/bin/pip install --no-cache-dir barman==3.19.1 boto3==1.44.8 psycopg2-binary==2.9.13
# pg_controldata is among the programs of PostgreSQL that have no link in /usr/bin
ENV PATH=/opt/barman/bin:/usr/lib/postgresql/16/bin:$PATH

# Debian's PostgreSQL 15 with kliv_mail: docker build -t kliv_mail .
#
# Beside a container's own users, `docker exec -it NAME psql` is the superuser; a
# password lets programs in from outside: ALTER ROLE app PASSWORD '...', -p 5432:5432.

FROM debian:12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends make gcc libc6-dev postgresql-15 postgresql-server-dev-15 libcurl4-openssl-dev libsodium-dev libidn2-dev libmd4c-dev libssl-dev
COPY . /usr/src/kliv_mail
RUN make -C /usr/src/kliv_mail PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config all
RUN make -C /usr/src/kliv_mail PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config DESTDIR=/built install

FROM debian:12-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates postgresql-15 libcurl4 libsodium23 libidn2-0 libmd4c0 && rm -rf /var/lib/apt/lists/*
COPY --from=build /built/ /
RUN printf '%s\n' "shared_preload_libraries = 'kliv_mail'" "listen_addresses = '*'" "logging_collector = off" "log_destination = 'stderr'" > /etc/postgresql/15/main/conf.d/container.conf
RUN echo 'host all all all scram-sha-256' >> /etc/postgresql/15/main/pg_hba.conf
USER postgres
EXPOSE 5432
VOLUME /var/lib/postgresql
CMD ["/usr/lib/postgresql/15/bin/postgres", "-D", "/var/lib/postgresql/15/main", "-c", "config_file=/etc/postgresql/15/main/postgresql.conf"]

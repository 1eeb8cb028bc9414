#!/bin/bash
# Prepares the data directory at the first start, as user postgres, then becomes the server.
set -euo pipefail

file_or_value() { # NAME DEFAULT: $NAME, or what the file $NAME_FILE holds
    local name=$1 file="${1}_FILE"
    if [ -n "${!file:-}" ]; then
        printf '%s' "$(<"${!file}")"
    else
        printf '%s' "${!name:-$2}"
    fi
}

as_postgres_if_root() {
    [ "$(id -u)" = 0 ] || return 0
    mkdir -p "$PGDATA" /run/postgresql
    chmod 0700 "$PGDATA"
    find "$PGDATA" /run/postgresql \! -user postgres -exec chown postgres:postgres '{}' +
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$BASH_SOURCE" "$@"
}

initialise() {
    local user password database method
    user=$(file_or_value POSTGRES_USER postgres)
    password=$(file_or_value POSTGRES_PASSWORD '')
    database=$(file_or_value POSTGRES_DB "$user")
    method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
    if [ -z "$password" ] && [ "$method" != trust ]; then
        echo 'postgres: the data directory is empty and POSTGRES_PASSWORD is not set' >&2
        exit 1
    fi
    # one sync of the file system at the end, not one of each of a thousand files
    # shellcheck disable=SC2086  # POSTGRES_INITDB_ARGS is a list of words
    initdb --no-sync --pgdata="$PGDATA" --username="$user" --encoding=UTF8 --locale=C.UTF-8 --auth-local=trust \
        --auth-host="$method" ${password:+--pwfile=<(printf '%s\n' "$password")} ${POSTGRES_INITDB_ARGS:-}
    printf '\nhost all all all %s\n' "$method" >> "$PGDATA/pg_hba.conf"
    if [ "$database" != postgres ]; then
        printf 'CREATE DATABASE "%s";\n' "${database//\"/\"\"}" | postgres --single -j -D "$PGDATA" postgres > /dev/null
    fi
    run_scripts "$user" "$database"
    sync --file-system "$PGDATA"
}

run_scripts() { # USER DATABASE: what /docker-entrypoint-initdb.d holds, against a server that only we reach
    local scripts=(/docker-entrypoint-initdb.d/*.{sql,sh}) script
    [ -e "${scripts[0]}" ] || [ -e "${scripts[-1]}" ] || return 0
    pg_ctl --pgdata="$PGDATA" --options="-c listen_addresses=''" --wait start
    for script in /docker-entrypoint-initdb.d/*; do
        case $script in
            *.sql) psql --username="$1" --dbname="$2" --no-psqlrc --set=ON_ERROR_STOP=1 --file="$script" ;;
            *.sh) bash "$script" ;;
        esac
    done
    pg_ctl --pgdata="$PGDATA" --mode=fast --wait stop
}

if [ "${1:-}" = postgres ] || [ "${1#-}" != "${1:-}" ]; then
    [ "$1" = postgres ] || set -- postgres "$@"
    as_postgres_if_root "$@"
    [ -s "$PGDATA/PG_VERSION" ] || initialise
    shift
    set -- postgres -c "listen_addresses=*" -c unix_socket_directories=/run/postgresql "$@"
fi
exec "$@"

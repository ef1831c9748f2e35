#!/usr/bin/env bash
# Runs the two commands of the README, and the example, on a Debian that has make, git, Python and its venv module, and
# nothing else: no Go, no PostgreSQL, no ps, no locale. What runs is the last commit of this checkout. The Debian is that
# of this machine, or the one in SUITE, such as sid.
#
# All of it is in namespaces of its own: its processes and mounts end with the one process that this script waits for.
set -euo pipefail

# --- inside, in the bare machine ---

run_and_example() {
  local began=$SECONDS log=/tmp/run.log server address=
  make run ADDRESS=127.0.0.1:0 >"$log" 2>&1 &
  server=$!
  until [[ $address ]]; do
    sleep 0.2
    kill -0 "$server" 2>/dev/null && ((SECONDS - began < 900)) || fail 'make run does not serve' "$log"
    address=$(sed -n 's/^caseload: serving on //p' "$log")
  done
  echo "make run serves after $((SECONDS - began)) s"
  timeout 120 .venv/bin/python client_example.py "$address" >/tmp/example.log 2>&1 ||
    fail 'the example fails' /tmp/example.log
  echo "the example ends with: $(tail -n 1 /tmp/example.log)"
  kill -INT -- -"$server" # as Ctrl-C does: to make and to the server
  timeout 60 tail --pid="$server" --follow /dev/null || fail 'make run does not stop' "$log"
  ! grep '"level": "error"\|Traceback' "$log" || fail 'the server has logged an error' "$log"
}

fail() {
  cat "$2" >&2
  echo "$1" >&2
  exit 1
}

if [[ ${1:-} == inside ]]; then
  set -m # a process group for each job
  cd /caseload
  run_and_example
  began=$SECONDS
  timeout 1800 make test || { echo "make test fails" >&2; exit 1; }
  echo "make test passes after $((SECONDS - began)) s"
  exit
fi

# --- in the namespaces, still with the files of this machine ---

make_machine() { # FOLDER
  local suite mirror log=$1.log
  suite=${SUITE:-$(. /etc/os-release && echo "$VERSION_CODENAME")}
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk '$2 !~ "[-/]" && $3 == "main" && !found++ { print $1 }') # not that of updates
  echo "making a bare Debian $suite"
  debootstrap --variant=minbase --include=ca-certificates,git,make,python3,python3-venv "$suite" "$1" "$mirror" \
    >"$log" 2>&1 || { tail -n 20 "$log" >&2; echo 'no bare machine could be made' >&2; exit 1; }
}

share_network() { # FOLDER: how this machine reaches its package index
  cp --dereference /etc/resolv.conf /etc/hosts "$1/etc/"
  local file
  for file in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do
    [[ ! -e $file ]] || cp "$file" "$1$file"
  done
}

if [[ ${1:-} == namespaces ]]; then
  folder=$2
  make_machine "$folder"
  share_network "$folder"
  git clone --quiet "$3" "$folder/caseload"
  mount -t proc proc "$folder/proc"
  mount --rbind /dev "$folder/dev"
  mount -t tmpfs tmpfs "$folder/dev/shm"
  mapfile -t network < <(env | grep -E '^(PIP_|SSL_CERT_|[a-z]+_proxy=|[A-Z]+_PROXY=)')
  exec env -i HOME=/root LANG=C PATH=/usr/sbin:/usr/bin:/sbin:/bin "${network[@]}" \
    chroot "$folder" /bin/bash /caseload/tests/fresh_machine.sh inside
fi

# --- on this machine ---

is_fit() {
  [[ $EUID == 0 && -e /etc/debian_version ]] && command -v debootstrap >/dev/null && command -v unshare >/dev/null
}

clean_up() {
  trap '' INT TERM
  if [[ $machine ]]; then
    kill -KILL "$machine" # unshare; the kernel kills what it has started
    wait "$machine" 2>/dev/null || true
  fi
  for _ in {1..20}; do # a process that is being killed may still write
    rm -rf --one-file-system "$folder" "$folder.log" 2>/dev/null && return
    sleep 0.5
  done
  echo "cannot remove $folder" >&2
}

is_fit || { echo 'fresh-test needs root on Debian, and debootstrap: apt-get install debootstrap' >&2; exit 2; }
checkout=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)
[[ -z $(git -C "$checkout" status --porcelain) ]] || echo 'what is not committed is left out'
machine='' folder=$(mktemp -d "${TMPDIR:-/var/tmp}/caseload-fresh.XXXXXX")
trap clean_up EXIT
chmod 755 "$folder"
trap 'exit 130' INT
trap 'exit 143' TERM
unshare --mount --pid --fork --kill-child --mount-proc "$0" namespaces "$folder" "$checkout" </dev/null &
machine=$! code=0
wait "$machine" || code=$?
machine=''
exit "$code"

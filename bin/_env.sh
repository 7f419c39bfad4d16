# Sourced by the launchers: sets `root` and `venv`, and makes the environment on first use and whenever
# requirements.lock, pyproject.toml or the checkout's place has changed.
set -euo pipefail

root=$(readlink -f "${BASH_SOURCE[0]}")
root=${root%/bin/_env.sh}
venv=$root/.venv

find_python() {
  local python
  for python in python3 python3.13 python3.12 python3.11; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  echo "tapecast: Python 3.11 or newer with its venv module is needed, and none was found as python3," \
    "python3.13, python3.12 or python3.11. On Debian and Ubuntu: apt install python3 python3-venv" >&2
  return 1
}

current() {
  [[ -x $venv/bin/python && -r $venv/stamp && $(<"$venv/stamp") == "$stamp" ]]
}

# The stamp is written last: an environment without one was left half-made and is made anew.
make_environment() (
  umask 022
  python=$(find_python)
  echo "tapecast: making $venv with $("$python" --version) (about a minute)" >&2
  rm -rf "$venv"
  "$python" -m venv "$venv"
  pip=("$venv/bin/python" -m pip --quiet --no-input)
  "${pip[@]}" install --require-hashes --only-binary :all: -r "$root/requirements.lock"
  "${pip[@]}" install --no-deps --no-build-isolation --editable "$root"
  echo "$stamp" >"$venv/stamp"
  echo "tapecast: $venv is ready" >&2
)

stamp="$(cat "$root/requirements.lock" "$root/pyproject.toml" | sha256sum) $root"
if ! current; then
  exec 9<"$root/bin/_env.sh"
  flock 9
  current || {
    make_environment >&2
  }
  exec 9<&-
fi

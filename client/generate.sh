#!/usr/bin/env bash
# Makes the Kotlin, Swift, Python and Dart clients of openapi.json in generated/, untouched, and compiles those whose
# compilers are on this machine. Says of each what became of it. Exit 75: the generator itself can't be had here.
#
# Needs java and python3 with pip. OPENAPI names another document than the committed one.
set -euo pipefail
cd "$(dirname "$0")"

document=${OPENAPI:-openapi.json}
out=generated
logs=$out/logs
tools=$out/tools
jar=$tools/openapi_generator_cli/openapi-generator.jar
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

has() { command -v "$1" > /dev/null; }

unavailable() {
  echo "no client is generated: $1" >&2
  exit 75
}

# Installs into a folder of its own. pip warns of what others have installed, which has nothing to do with it.
fetch() { python3 -m pip install --quiet --target "$1" "${@:2}" 2> "$logs/pip.log" || { cat "$logs/pip.log" >&2; return 1; }; }

generate() {
  local name=$1 generator=$2 properties=$3
  # a value that a later server adds to an enum must not break a client that is installed
  java -jar "$jar" generate -i "$document" -o "$out/$name" -g "$generator" \
    --global-property apis,models,supportingFiles,apiDocs=false,modelDocs=false,apiTests=false,modelTests=false \
    --additional-properties "$properties,enumUnknownDefaultCase=true" > "$logs/$name.log" 2>&1 ||
    { cat "$logs/$name.log" >&2; echo "$name: could not be generated" >&2; return 1; }
}

# Every module, because Python finds out at run time what others find out when they compile.
compile_python() {
  python3 -m compileall -q "$out/python" &&
    PYTHONPATH=$out/python:$out/python-packages python3 -c '
import importlib, pkgutil, aggios_client
for module in pkgutil.walk_packages(aggios_client.__path__, "aggios_client."):
    importlib.import_module(module.name)
'
}
compile_kotlin() { mvn -q -B -ntp -f flows/pom.xml compile; }
compile_swift() { swift build --package-path "$out/swift"; }
compile_dart() { (cd "$out/dart" && dart pub get && dart analyze --no-fatal-warnings); }

# One line a client, after all that its compiler wrote if it refused.
compile() {
  local name=$1 program=$2 log=$logs/$1-compile.log
  if ! has "$program"; then
    echo "$name: generated, not compiled: there is no $program here"
  elif "compile_$name" > "$log" 2>&1; then
    echo "$name: generated and compiled"
  elif grep -qE 'Could not (transfer|resolve)|could not be resolved' "$log"; then
    cat "$log" >&2
    echo "$name: generated, not compiled: what it depends on could not be fetched"
  else
    cat "$log" >&2
    echo "$name: generated, and does not compile" >&2
    return 1
  fi
}

rm -rf "$out"/{kotlin,kotlin-build,swift,python,dart} "$logs"
mkdir -p "$logs"
has java || unavailable 'there is no java here'
[ -f "$jar" ] || fetch "$tools" --no-deps --require-hashes -r flows/generator.txt ||
  unavailable 'the generator could not be fetched'

jobs=()
generate kotlin kotlin packageName=app.aggios.client,omitGradleWrapper=true & jobs+=($!)
generate swift swift6 projectName=AggiosClient & jobs+=($!)
generate python python packageName=aggios_client & jobs+=($!)
generate dart dart pubName=aggios_client & jobs+=($!)
for job in "${jobs[@]}"; do wait "$job"; done

failed=0
if [ -d "$out/python-packages" ] || fetch "$out/python-packages" -r flows/requirements.txt; then
  compile python python3 || failed=1
else
  echo 'python: generated, not compiled: what it depends on could not be fetched'
fi
compile kotlin mvn || failed=1
compile swift swiftc || failed=1
compile dart dart || failed=1
exit $failed

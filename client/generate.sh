#!/usr/bin/env bash
# Makes the clients of openapi.json in generated/, untouched, in each of the languages below, and compiles those whose compilers
# are on this machine. Says of each what became of it. Exit 75: the generator itself can't be had here.
#
# Needs java and python3 with pip. OPENAPI names another document than the committed one.
set -euo pipefail
cd "$(dirname "$0")"

document=${OPENAPI:-openapi.json}
out=generated
logs=$out/logs
tools=$out/tools
settings=$out/settings
jar=$tools/openapi_generator_cli/openapi-generator.jar
languages=(kotlin swift python dart go java csharp rust ruby php)
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# where their installers put them
export PATH=$PATH:/usr/local/go/bin:$HOME/.cargo/bin

# a JVM that lives for seconds spends a third of its CPU time on optimizing code that it hardly runs again
jvm='-XX:TieredStopAtLevel=1 -XX:+UseSerialGC'
export MAVEN_OPTS="$jvm"

has() { command -v "$1" > /dev/null; }

unavailable() {
  echo "no client is generated: $1" >&2
  exit 75
}

# Installs into a folder of its own. pip warns of what others have installed, which has nothing to do with it.
fetch() { python3 -m pip install --quiet --target "$1" "${@:2}" 2> "$logs/pip.log" || { cat "$logs/pip.log" >&2; return 1; }; }

# Writes the settings of a generator: its name, and its properties as lines of YAML.
configure() {
  local name=$1 generator=$2
  shift 2
  # a value that a later server adds to an enum must not break a client that is installed
  cat > "$settings/$name.yaml" << YAML
generatorName: $generator
inputSpec: $document
outputDir: $out/$name
globalProperties: { apis: '', models: '', supportingFiles: '', apiDocs: 'false', modelDocs: 'false', apiTests: 'false', modelTests: 'false' }
additionalProperties:
  enumUnknownDefaultCase: true
$(printf '  %s\n' "$@")
YAML
}

# All in one process, which costs less than half of a process each.
generate() {
  # shellcheck disable=SC2086
  java $jvm -jar "$jar" batch --threads 2 -- "$settings"/*.yaml > "$logs/generator.log" 2>&1 && all_generated ||
    { cat "$logs/generator.log" >&2; echo 'the clients could not be generated' >&2; return 1; }
}
all_generated() {
  local name
  for name in "${languages[@]}"; do [ -n "$(ls -A "$out/$name" 2> /dev/null)" ] || { echo "$name: nothing was generated" >&2; return 1; }; done
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
compile_kotlin() { mvn -q -B -ntp -f flows/kotlin/pom.xml compile; }
compile_java() { mvn -q -B -ntp -f flows/java/pom.xml compile; }
compile_go() { (cd flows/go && go build -o ../../generated/go-build/flow .); }
# without TLS, which needs headers of OpenSSL and says nothing about the client; its dependencies are compiled once
compile_rust() {
  CARGO_TARGET_DIR=$PWD/../node_modules/.cache/cargo cargo check --quiet --no-default-features --manifest-path "$out/rust/Cargo.toml"
}
compile_csharp() { dotnet build --nologo "$out/csharp/src/Aggios.Client"; }
# they are read and not run, because what they depend on has nothing to do with the document
compile_ruby() { ruby flows/ruby/syntax.rb "$out/ruby/lib"; }
compile_php() { php flows/php/syntax.php "$out/php/lib"; }
compile_swift() { swift build --package-path "$out/swift"; }
compile_dart() { (cd "$out/dart" && dart pub get && dart analyze --no-fatal-warnings); }

# One line a client, after all that its compiler wrote if it refused.
compile() {
  local name=$1 program=$2 log=$logs/$1-compile.log
  if ! has "$program"; then
    echo "$name: generated, not compiled: there is no $program here"
  elif "compile_$name" > "$log" 2>&1; then
    echo "$name: generated and compiled"
  elif grep -qE 'Could not (transfer|resolve)|could not be resolved|[Cc]ould not resolve host|failed to download|dial tcp' "$log"; then
    cat "$log" >&2
    echo "$name: generated, not compiled: what it depends on could not be fetched"
  else
    cat "$log" >&2
    echo "$name: generated, and does not compile" >&2
    return 1
  fi
}

for name in "${languages[@]}"; do rm -rf "$out/$name" "$out/$name-build"; done
rm -rf "$logs" "$settings"
mkdir -p "$logs" "$settings"
has java || unavailable 'there is no java here'
[ -f "$jar" ] || fetch "$tools" --no-deps --require-hashes -r flows/generator.txt ||
  unavailable 'the generator could not be fetched'

configure kotlin kotlin 'packageName: app.aggios.client' 'omitGradleWrapper: true'
configure swift swift6 'projectName: AggiosClient'
configure python python 'packageName: aggios_client'
configure dart dart 'pubName: aggios_client'
configure go go 'packageName: aggios' 'gitHost: aggios.app' 'gitUserId: clients' 'gitRepoId: go'
configure java java 'library: native' 'openApiNullable: false' 'invokerPackage: app.aggios.client' \
  'apiPackage: app.aggios.client.apis' 'modelPackage: app.aggios.client.models'
configure csharp csharp 'packageName: Aggios.Client'
configure rust rust 'packageName: aggios_client'
configure ruby ruby 'gemName: aggios_client' 'moduleName: AggiosClient'
configure php php 'invokerPackage: Aggios\Client'
generate

failed=0
if [ -d "$out/python-packages" ] || fetch "$out/python-packages" -r flows/python/requirements.txt; then
  compile python python3 || failed=1
else
  echo 'python: generated, not compiled: what it depends on could not be fetched'
fi
compile kotlin mvn || failed=1
compile java mvn || failed=1
compile go go || failed=1
compile rust cargo || failed=1
compile ruby ruby || failed=1
compile php php || failed=1
compile csharp dotnet || failed=1
compile swift swiftc || failed=1
compile dart dart || failed=1
exit $failed

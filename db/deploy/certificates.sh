#!/bin/sh
# Creates a certificate authority and a server certificate for the PostgreSQL of compose.yaml, once; a volume keeps them.
#
#   certificates.sh [folder] [host name of the server]
set -eu
umask 077
folder=${1:-/certificates}
name=${2:-postgres}
[ -f "$folder/server.crt" ] && exit 0

# the authority's private key is deleted on exit, so it signs this one certificate only
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
  -subj '/CN=Aggios PostgreSQL authority' -addext 'keyUsage=critical,keyCertSign,cRLSign' -keyout ca.key -out ca.crt
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
  -subj "/CN=$name" -keyout server.key -out server.csr
printf 'subjectAltName=DNS:%s\nextendedKeyUsage=serverAuth\n' "$name" > server.ext
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 \
  -extfile server.ext -out server.crt

# PostgreSQL runs as user 999 in its image and refuses a key that others can read
rm -f "$folder/server.key"
cp server.key ca.crt "$folder"
chmod 0644 "$folder/ca.crt"
[ "$(id -u)" -ne 0 ] || chown 999:999 "$folder/server.key"
# last, and by an atomic rename: the presence of this file means that everything is done
cp server.crt "$folder/server.crt.new"
chmod 0644 "$folder/server.crt.new"
mv "$folder/server.crt.new" "$folder/server.crt"

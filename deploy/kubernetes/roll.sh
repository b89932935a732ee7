#!/bin/sh
# Rolls the pods to an image: the schema first, then one pod after another, while the others serve.
#
#   deploy/kubernetes/roll.sh registry.example/aggios-api:0.2.0    # to a version
#   deploy/kubernetes/roll.sh registry.example/aggios-api:0.1.0    # and back again
#
# When the new pods do not become ready, the deployment goes back to the pods before, which have served all the time.
set -eu
image=${1:?which image?}
cd "$(dirname "$0")"

apply() {
  sed "s|image: aggios-api\$|image: $image|" "$1" | kubectl apply --filename -
}

# a job is not changed by another apply, so the one of the last version goes first
kubectl delete job aggios-migrate --namespace aggios --ignore-not-found
apply migrate.yaml
while :; do
  state=$(kubectl get job aggios-migrate --namespace aggios --output \
    'jsonpath={range .status.conditions[?(@.status=="True")]}{.type} {end}')
  case " $state " in
    *' Complete '*) break ;;
    *' Failed '*)
      kubectl logs job/aggios-migrate --namespace aggios --tail 50 >&2 || true
      echo 'the schema could not be brought up to date: the pods before serve on' >&2
      exit 1
      ;;
  esac
  # an index on a large table takes as long as it takes
  sleep 2
done

apply backend.yaml
if ! kubectl rollout status deployment/aggios-api --namespace aggios --timeout 10m; then
  kubectl logs deployment/aggios-api --namespace aggios --tail 50 >&2 || true
  kubectl rollout undo deployment/aggios-api --namespace aggios
  echo 'the new pods were not ready: the pods before serve on' >&2
  exit 1
fi

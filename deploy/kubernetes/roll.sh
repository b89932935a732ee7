#!/bin/sh
# Rolls the pods to an image: the schema first, then one pod after another, while the others serve.
#
#   deploy/kubernetes/roll.sh registry.example/aggios-api:0.2.0    # to a version
#   deploy/kubernetes/roll.sh registry.example/aggios-api:0.1.0    # and back again
#
# When the new pods do not become ready, the deployment goes back to the pods before, which have served all the time. One run at a time:
# a second one refuses while the job of the first works.
set -eu
image=${1:?which image?}
cd "$(dirname "$0")"

with_image() {
  sed "s|image: aggios-api\$|image: $image|" "$1"
}

# the job's uid, and the conditions that are true: uid Complete
job_state() {
  kubectl get job aggios-migrate --namespace aggios --ignore-not-found --output \
    'jsonpath={.metadata.uid} {range .status.conditions[?(@.status=="True")]}{.type} {end}'
}

state=$(job_state)
case " $state " in
  '  ' | *' Complete '* | *' Failed '*) ;;
  *)
    echo 'the job aggios-migrate still works: wait for its end, or remove it: kubectl delete job aggios-migrate --namespace aggios' >&2
    exit 1
    ;;
esac
# empty before the first version
revision=$(kubectl get deployment aggios-api --namespace aggios --ignore-not-found --output \
  'jsonpath={.metadata.annotations.deployment\.kubernetes\.io/revision}')

# a job is not changed by another apply, so the one of the last version goes first
kubectl delete job aggios-migrate --namespace aggios --ignore-not-found
# when another run was faster, its job has the name already, and this run ends here
job=$(with_image migrate.yaml | kubectl create --filename - --output 'jsonpath={.metadata.uid}')
while :; do
  state=$(job_state)
  case "$state " in
    "$job "*) ;;
    *)
      echo 'another run has replaced the job that migrates: the pods before serve on' >&2
      exit 1
      ;;
  esac
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

with_image backend.yaml | kubectl apply --filename -
if ! kubectl rollout status deployment/aggios-api --namespace aggios --timeout 10m; then
  kubectl logs deployment/aggios-api --namespace aggios --tail 50 >&2 || true
  if [ -z "$revision" ]; then
    echo 'the pods were not ready, and there were none before: run this again when it is mended' >&2
  # the number is named, because without a change there is no new revision, and the one before this would be an older version
  elif kubectl rollout undo deployment/aggios-api --namespace aggios --to-revision "$revision"; then
    echo 'the new pods were not ready: the pods before serve on' >&2
  else
    echo 'the new pods were not ready, and the deployment could not be taken back: kubectl rollout undo does it' >&2
  fi
  exit 1
fi

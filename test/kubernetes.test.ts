import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Ajv } from 'ajv'
import t, { type Test } from 'tap'
import { parseAllDocuments } from 'yaml'
import { pipelineCount } from '../plugins/infrastructure/database.ts'
import type { Examination } from '../src/cli/doctor/examination.ts'
import { checkProxies } from '../src/cli/doctor/settings-checks.ts'
import { readConfig, readMigrationConfig } from '../src/config/config.ts'
import { settings } from '../src/config/settings.ts'
import { readText, root, startApp } from './harness.ts'
import { findKubernetesSchemas } from './parts.ts'
import { createStage } from './stage-programs.ts'
import { otherStrongSecret, strongSecret } from './tokens.ts'

/*
 * The manifests in deploy/kubernetes: they follow the schemas of Kubernetes, name what the product has, and keep its pods closed. The
 * script that rolls them out, with a kubectl that is played.
 */

type Env = { name: string; value?: string; valueFrom?: object }[]
type Probe = { httpGet: { path: string; port: string } }
type Pod = {
  metadata: { labels: object; annotations?: Record<string, string> }
  spec: {
    automountServiceAccountToken: boolean
    enableServiceLinks: boolean
    securityContext: object
    terminationGracePeriodSeconds: number
    containers: {
      image: string
      ports?: { name: string; containerPort: number }[]
      env: Env
      securityContext: object
      resources: object
      startupProbe: Probe
      livenessProbe: Probe
      readinessProbe: Probe
      lifecycle: { preStop: { sleep: { seconds: number } } }
      volumeMounts: { name: string; mountPath: string; readOnly?: boolean }[]
    }[]
    volumes: { name: string; secret?: { secretName: string } }[]
  }
}
/** What is in a manifest is said by the schemas of Kubernetes. */
type Free = ReturnType<typeof JSON.parse>
type Manifest = {
  apiVersion: string
  kind: string
  metadata: { name: string; namespace?: string }
  spec: Free
  data: Free
}

const folder = 'deploy/kubernetes'
const files = readdirSync(join(root, folder)).filter((name) => name.endsWith('.yaml') && name !== 'kustomization.yaml')
const manifests = files.flatMap((file) =>
  parseAllDocuments(readText(`${folder}/${file}`)).map((document) => document.toJS() as Manifest)
)
const find = (kind: string, name = 'aggios-api') => {
  const found = manifests.find((each) => each.kind === kind && each.metadata.name === name)
  if (!found) throw new Error(`there is no ${kind} ${name}`)
  return found
}
const deployment = find('Deployment').spec
const backend: Pod = deployment.template
const job: Pod = find('Job', 'aggios-migrate').spec.template
const container = (pod: Pod) => pod.spec.containers[0] as Pod['spec']['containers'][0]
const { ports = [], env } = container(backend)
const portOf = (name: string) => ports.find((port) => port.name === name)?.containerPort

for (const version of ['1.31.0', '1.37.0']) {
  const schemas = findKubernetesSchemas(version)
  t.test(`every manifest follows the schemas of Kubernetes ${version}`, { skip: schemas.skip }, async (t) => {
    const read = (name: string) => {
      const { $id, $schema, ...schema } = JSON.parse(readFileSync(join(schemas.path, name), 'utf8'))
      return schema
    }
    const ajv = new Ajv({ strict: false, validateFormats: false, allErrors: true })
    ajv.addSchema(read('_definitions.json'), '/api/_definitions.json')
    const faults = (manifest: Manifest) => {
      const group = manifest.apiVersion.replace(/^([^./]*)(?:\.[^/]*)?\//, '$1-')
      const validate = ajv.compile(read(`${manifest.kind.toLowerCase()}-${group}.json`))
      validate(manifest)
      return validate.errors ?? []
    }
    for (const manifest of manifests) t.strictSame(faults(manifest), [], `${manifest.kind} ${manifest.metadata.name}`)
    const broken = structuredClone(find('Deployment'))
    broken.spec.template.spec.containers[0].readinesProbe = {}
    t.ok(faults(broken).length > 0, 'it does look')
  })
}

t.test('the settings of the pods', async (t) => {
  const known = new Map(Object.values(settings).map(({ name, secret }) => [name, secret]))
  const plain = { ...find('ConfigMap', 'aggios-settings').data } as Record<string, string>
  const given = (list: Env) => Object.fromEntries(list.map(({ name, value }) => [name, value]))

  t.test('exist, and each secret is a file', async (t) => {
    for (const name of Object.keys(plain)) t.equal(known.get(name), false, `${name} is a setting, and no secret`)
    for (const pod of [backend, job]) {
      const mounted = container(pod).volumeMounts.find(({ name }) => name === 'secrets')?.mountPath
      for (const { name, value } of container(pod).env) {
        const secret = name.endsWith('_FILE')
        t.equal(known.get(name.replace(/_FILE$/, '')), secret, name)
        if (secret) t.equal(value, `${mounted}/${name.replace(/_FILE$/, '').toLowerCase()}`)
      }
    }
  })

  t.test('are accepted by the product in production', async (t) => {
    const secrets: Record<string, string> = {
      DATABASE_URL:
        'postgres://aggios_app:secret@db.example/aggios?sslmode=verify-full&sslrootcert=/run/database-ca/ca.crt',
      REDIS_URL: 'rediss://aggios:secret@redis.example',
      SMTP_URL: 'smtps://aggios:secret@mail.example',
      S3_ACCESS_KEY: 'aggios-app',
      S3_SECRET_KEY: 'secret',
      JWT_SECRET: strongSecret,
      PASSWORD_PEPPER: otherStrongSecret
    }
    const files = env.filter(({ name }) => name.endsWith('_FILE')).map(({ name }) => name.replace(/_FILE$/, ''))
    t.strictSame(files.sort(), Object.keys(secrets).sort())
    const direct = given(env.filter(({ name }) => !name.endsWith('_FILE')))
    const config = readConfig({ ...plain, ...direct, ...secrets })
    t.match(config, { nodeEnv: 'production', host: '0.0.0.0', port: portOf('http'), metricsPort: portOf('internal') })
    const owner = 'postgres://aggios_owner:secret@db.example/aggios?sslmode=verify-full'
    t.match(readMigrationConfig({ NODE_ENV: 'production', DATABASE_OWNER_URL: owner }), { databaseOwnerUrl: owner })
    const found: string[] = []
    const note = (code: string, subject: string) => found.push(`${code} ${subject}`)
    checkProxies({ config, found: note } as unknown as Examination)
    t.strictSame(found, [], 'the doctor says nothing of the proxies')
  })

  t.test('the retention of the audit log is read by the job, and by no pod that serves', async (t) => {
    const key = { name: 'aggios-settings', key: 'AUDIT_RETENTION', optional: true }
    const find = (pod: Pod) => container(pod).env.find(({ name }) => name === key.key)
    t.strictSame(find(job), { name: key.key, valueFrom: { configMapKeyRef: key } })
    t.strictSame(find(backend), { name: key.key, value: '' }, 'the map is given to it as a whole')
  })

  t.test('the pods that serve have no credentials of the owner', async (t) => {
    const secretsOf = (pod: Pod) => pod.spec.volumes.flatMap(({ secret }) => secret?.secretName ?? [])
    t.strictSame(secretsOf(backend), ['aggios-api'])
    t.strictSame(secretsOf(job), ['aggios-owner'])
    t.notMatch(JSON.stringify(deployment), /owner/i)
    t.strictSame(
      manifests.filter(({ kind }) => kind === 'Secret'),
      [],
      'and no secret is in the repository'
    )
  })
})

t.test('pods may do nothing but run the product', async (t) => {
  for (const pod of [backend, job]) {
    t.match(pod.spec, { automountServiceAccountToken: false, enableServiceLinks: false })
    t.match(pod.spec.securityContext, {
      runAsNonRoot: true,
      runAsUser: 1000,
      seccompProfile: { type: 'RuntimeDefault' }
    })
    t.strictSame(container(pod).securityContext, {
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'] }
    })
    t.match(container(pod).resources, { requests: { cpu: String, memory: String }, limits: { memory: String } })
    const writable = container(pod).volumeMounts.filter(({ readOnly }) => !readOnly)
    t.strictSame(writable, [{ name: 'tmp', mountPath: '/tmp' }])
    t.equal(container(pod).image, 'aggios-api')
  }
  t.match(readText('Dockerfile'), /^USER 1000:1000$/m)
  t.match(find('Namespace', 'aggios'), { metadata: { labels: { 'pod-security.kubernetes.io/enforce': 'restricted' } } })
})

t.test('probes ask what the product answers, on any host name', async (t) => {
  const app = await startApp(t)
  const { startupProbe, livenessProbe, readinessProbe } = container(backend)
  for (const { httpGet } of [startupProbe, livenessProbe, readinessProbe]) {
    t.equal(httpGet.port, 'http')
    const reply = await app.inject({ url: httpGet.path, headers: { host: '10.1.2.3:8080' } })
    t.equal(reply.statusCode, 200, httpGet.path)
  }
  t.match(livenessProbe.httpGet.path, /live$/, 'a database that is away restarts no pod')
  t.match(readinessProbe.httpGet.path, /live$/, 'nor does it take all pods out of the service')
  t.match(startupProbe.httpGet.path, /ready$/, 'a new pod gets no requests before it can serve')
  const annotations = backend.metadata.annotations ?? {}
  t.equal(annotations['prometheus.io/port'], String(portOf('internal')))
})

t.test('a pod that ends is given its time, and others take over', async (t) => {
  const { seconds } = container(backend).lifecycle.preStop.sleep
  t.ok(backend.spec.terminationGracePeriodSeconds > seconds + Number(settings.shutdownTimeout.fallback))
  t.match(deployment.strategy.rollingUpdate, { maxSurge: 1, maxUnavailable: 0 })
  const { minReplicas, maxReplicas, scaleTargetRef } = find('HorizontalPodAutoscaler').spec
  t.strictSame(scaleTargetRef, { apiVersion: 'apps/v1', kind: 'Deployment', name: 'aggios-api' })
  t.notHas(deployment, 'replicas', 'an apply must not undo what the autoscaler decided')
  t.ok(minReplicas > find('PodDisruptionBudget').spec.maxUnavailable)
  const pool = Number(find('ConfigMap', 'aggios-settings').data.DATABASE_POOL)
  const connections = (maxReplicas + deployment.strategy.rollingUpdate.maxSurge) * (pool + pipelineCount)
  t.ok(connections + 3 + 5 < 100, `${connections} connections, of the 100 that PostgreSQL has by default`)
})

t.test('what belongs together has the same names', async (t) => {
  for (const { kind, metadata } of manifests) if (kind !== 'Namespace') t.equal(metadata.namespace, 'aggios')
  const { labels } = backend.metadata
  for (const selector of [
    deployment.selector.matchLabels,
    find('Service').spec.selector,
    find('PodDisruptionBudget').spec.selector.matchLabels,
    find('NetworkPolicy').spec.podSelector.matchLabels
  ])
    t.strictSame(selector, labels)
  t.strictSame(find('NetworkPolicy', 'aggios-migrate').spec.podSelector.matchLabels, job.metadata.labels)
  const [port] = find('Service').spec.ports
  t.ok(portOf(port.targetPort))
  const { rules, tls } = find('Ingress').spec
  const domain = find('ConfigMap', 'aggios-settings').data.BASE_DOMAIN
  for (const hosts of [tls[0].hosts, rules.map((rule: { host: string }) => rule.host)])
    t.strictSame(hosts, [domain, `*.${domain}`])
  for (const { http } of rules) {
    t.strictSame(http.paths[0].backend.service, { name: 'aggios-api', port: { name: port.name } })
  }
  const [{ resources }] = parseAllDocuments(readText(`${folder}/kustomization.yaml`)).map((each) => each.toJS())
  t.strictSame(resources.sort(), files.filter((file) => file !== 'migrate.yaml').sort())
})

t.test('the network is closed but for what is named', async (t) => {
  t.strictSame(find('NetworkPolicy', 'nothing').spec, { podSelector: {}, policyTypes: ['Ingress', 'Egress'] })
  const { ingress, egress } = find('NetworkPolicy').spec
  for (const { from, ports } of ingress) {
    t.equal(from.length, 1)
    for (const { port } of ports) t.ok(portOf(port), port)
  }
  t.strictSame(
    egress[0].ports.map(({ port }: { port: number }) => port),
    [5432, 6379, 443, 465, 587]
  )
  t.strictSame(egress[0].to[0].ipBlock.except, ['169.254.0.0/16'])
  t.notHas(find('NetworkPolicy', 'aggios-migrate').spec, 'ingress')
})

const kubectl = `
case "$*" in
  'delete job aggios-migrate '*) echo delete >> calls ;;
  'create --filename - --output jsonpath={.metadata.uid}')
    sed -n 's/ *image: */migrate /p' >> calls
    printf uid-1 ;;
  'apply --filename -') sed -n 's/ *image: */api /p' >> calls ;;
  'get job aggios-migrate '*)
    # the first question comes before the job is made
    if ! grep -q '^migrate' calls; then printf %s "$JOB_BEFORE"
    elif [ -n "$REPLACED" ]; then printf 'uid-2 Complete '
    elif [ -n "$MIGRATION_FAILS" ]; then printf 'uid-1 FailureTarget Failed '
    elif [ -e asked ]; then printf 'uid-1 SuccessCriteriaMet Complete '
    else : > asked; printf 'uid-1 '; fi ;;
  'get deployment aggios-api '*) printf %s "$REVISION" ;;
  'rollout status '*) echo status >> calls; test -z "$NEVER_READY" ;;
  'rollout undo '*) echo "undo $7" >> calls; test -z "$UNDO_FAILS" ;;
  'logs '*) echo 'the log' ;;
  *) echo "kubectl $* is not known" >&2; exit 9 ;;
esac`

t.test('roll.sh of Kubernetes', async (t) => {
  const image = 'registry.example:5000/aggios-api:0.2.0'
  const roll = async (t: Test, env: Record<string, string>) => {
    const stage = createStage(t, { kubectl })
    const { code, output } = await stage.run(`${folder}/roll.sh`, [image], {
      JOB_BEFORE: 'uid-0 Complete ',
      REVISION: '7',
      ...env
    })
    return { code, output, calls: stage.calls() }
  }
  const migrated = ['delete', `migrate ${image}`]
  const rolled = [...migrated, `api ${image}`, 'status']

  t.test('migrates first', async (t) => {
    t.match(await roll(t, {}), { code: 0, calls: rolled })
    t.match(await roll(t, { JOB_BEFORE: '', REVISION: '' }), { code: 0, calls: rolled })
    t.match(await roll(t, { JOB_BEFORE: 'uid-0 FailureTarget Failed ' }), { code: 0, calls: rolled })
    const failed = await roll(t, { MIGRATION_FAILS: '1' })
    t.match(failed, { code: 1, output: /could not be brought up to date/ })
    t.strictSame(failed.calls, migrated)
  })
  t.test('goes back to the revision before when the new pods are not ready', async (t) => {
    const late = await roll(t, { NEVER_READY: '1' })
    t.match(late, { code: 1, output: /the log.*the pods before serve on/s })
    t.strictSame(late.calls, [...rolled, 'undo 7'])
    const stuck = await roll(t, { NEVER_READY: '1', UNDO_FAILS: '1' })
    t.match(stuck, { code: 1, output: /could not be taken back/ })
    const first = await roll(t, { NEVER_READY: '1', REVISION: '' })
    t.match(first, { code: 1, output: /there were none before/ })
    t.strictSame(first.calls, rolled, 'the first version has nothing to go back to')
  })
  t.test('leaves the job of another run alone, and does not take it for its own', async (t) => {
    const second = await roll(t, { JOB_BEFORE: 'uid-0 ' })
    t.match(second, { code: 1, output: /still works/ })
    t.strictSame(second.calls, [''])
    const beaten = await roll(t, { REPLACED: '1' })
    t.match(beaten, { code: 1, output: /another run has replaced the job/ })
    t.strictSame(beaten.calls, migrated)
  })
})

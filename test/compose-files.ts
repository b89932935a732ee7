import { execFileSync } from 'node:child_process'
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseDocument, visit } from 'yaml'
import { readText, root } from './harness.ts'

/*
 * The compose files and the `.env` of the repository, as Compose reads them.
 */

export const minioFile = 'db/deploy/minio.Dockerfile'
export const postgresFile = 'db/deploy/postgres.Dockerfile'
export const wafFile = 'deploy/waf/Dockerfile'

export type Service = {
  image?: string
  build?: object
  command?: string[]
  environment?: Record<string, string>
  secrets?: string[]
  env_file?: unknown
  healthcheck?: object
  restart: string
  deploy?: { resources?: { limits?: { cpus?: string; memory?: string } } }
  read_only?: boolean
  ports?: string[]
  volumes?: string[]
  networks?: string[]
  network_mode?: string
  labels?: Record<string, string>
  logging?: { driver: string; options: Record<string, string> }
  security_opt?: string[]
  stop_grace_period?: string
  depends_on?: Record<string, { condition: string }>
}
export type Compose = {
  name: string
  services: Record<'traefik' | 'backend' | 'postgres' | 'redis' | 'minio', Service> & Record<string, Service>
  networks: Record<string, { internal?: boolean; ipam?: { config: { subnet: string }[] } } | null>
  volumes: Record<string, unknown>
  secrets: Record<string, { file: string }>
}

/**
 * Merges compose files as Compose does: mappings by key, and lists one after the other, unless they have the tag
 * `!override`.
 */
export function readCompose(...paths: string[]): Compose {
  let merged: unknown
  for (const path of paths) {
    const document = parseDocument(readText(path), { merge: true, version: '1.2', logLevel: 'error' })
    if (document.errors[0]) throw document.errors[0]
    const replaced: unknown[] = []
    visit(document, {
      Collection(_key, node) {
        if (node.tag === '!override') replaced.push(node.toJS(document))
      },
      Scalar(_key, node) {
        if (node.tag === '!reset') node.value = reset
      }
    })
    merged = merge(merged, document.toJS(), (value) => replaced.some((each) => isSame(each, value)))
  }
  return merged as Compose
}

/** The value of a member that a later file removes. */
const reset = '!reset'
const isSame = (one: unknown, other: unknown) => JSON.stringify(one) === JSON.stringify(other)
const isMapping = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

function merge(below: unknown, above: unknown, replaces: (value: unknown) => boolean): unknown {
  if (Array.isArray(below) && Array.isArray(above)) return replaces(above) ? above : [...below, ...above]
  if (!isMapping(below) || !isMapping(above) || replaces(above)) return above
  const result: Record<string, unknown> = { ...below }
  for (const [key, value] of Object.entries(above)) {
    if (value === reset) delete result[key]
    else result[key] = key in below ? merge(below[key], value, replaces) : value
  }
  return result
}

export const reference = /\$(?:(\$)|\{(\w+)(?:(:[-?])([^}]*))?\})/g

/** Replaces variables as Compose does. `missing` are those that must be set and are not. */
export function interpolate<T>(value: T, env: Record<string, string>): { result: T; missing: Set<string> } {
  const missing = new Set<string>()
  const fill = (text: string) =>
    text.replace(reference, (_all, dollar, name: string, operator, rest) => {
      if (dollar) return '$'
      if (env[name]) return env[name]
      if (operator === ':?') missing.add(name)
      return operator === ':-' ? rest : ''
    })
  const walk = (node: unknown): unknown => {
    if (typeof node === 'string') return fill(node)
    if (Array.isArray(node)) return node.map(walk)
    if (isMapping(node)) return Object.fromEntries(Object.entries(node).map(([key, each]) => [key, walk(each)]))
    return node
  }
  return { result: walk(value) as T, missing }
}

export const development = readCompose('compose.yaml')
export const production = readCompose('compose.yaml', 'compose.production.yaml')
export const seaweedfs = readCompose('compose.yaml', 'compose.seaweedfs.yaml')
export const waf = readCompose('compose.yaml', 'compose.production.yaml', 'compose.waf.yaml')
export const backup = readCompose('compose.yaml', 'compose.backup.yaml')
export const observability = readCompose('compose.yaml', 'compose.observability.yaml')

const folder = mkdtempSync(join(tmpdir(), 'aggios-secrets-'))
process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
/** The files that deploy/compose/secrets.sh makes, and what an operator writes into those of services outside. */
execFileSync(join(root, 'deploy/compose/secrets.sh'), {
  env: { PATH: process.env.PATH, SECRETS_DIR: folder },
  stdio: 'pipe'
})
for (const [name, value] of Object.entries({
  backup_s3_access_key: 'aggios-backup',
  backup_s3_secret_key: 'a1a1b2b2c3c3d4d4'
})) {
  chmodSync(join(folder, name), 0o600)
  writeFileSync(join(folder, name), value)
}
export const secretFiles = folder
export const secretOf = (name: string) => readFileSync(join(folder, name), 'utf8').trim()

/** The environment of a container, whose secrets are the files that it is given. Throws for a file that it is not. */
export function withSecrets({ environment = {}, secrets = [] }: Service): Record<string, string> {
  const own = Object.entries(environment).map(([name, value]): [string, string] => {
    const file = /^\/run\/secrets\/(\w+)$/.exec(value)?.[1]
    if (file === undefined) return [name, value]
    if (!secrets.includes(file)) throw new Error(`${name}: the container does not get ${file}`)
    return [name, join(folder, file)]
  })
  return Object.fromEntries(own)
}

/** What compose.yaml asks for in production, and compose.backup.yaml in addition. */
export const productionEnv = { BASE_DOMAIN: 'aggios.app' }
export const backupEnv = { BACKUP_S3_ENDPOINT: 'https://elsewhere.example', BACKUP_S3_BUCKET: 'aggios-backups' }
export const exampleLines = readText('.env.example').split('\n')
export const exampleEnv = Object.fromEntries(
  exampleLines.flatMap((line) => {
    const match = /^([A-Z][A-Z0-9_]*)=(.*)$/.exec(line)
    return match ? [[match[1], match[2]]] : []
  })
)
export const filledEnv: Record<string, string> = { ...exampleEnv }

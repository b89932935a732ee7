import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { readStoreInstallation } from '../db/queries/store-fence.ts'
import { buildApp } from '../src/app.ts'
import { readBackupConfig } from '../src/config/backups.ts'
import { readConfig } from '../src/config/config.ts'
import type { Environment } from '../src/config/environment.ts'
import { completeUntil, openObjectBackup } from '../src/files/object-backup.ts'
import { openBackup, openStore } from '../src/files/store/configured-store.ts'
import { createS3Store } from '../src/files/store/s3.ts'
import { s3Server, startArchive, startBackupStore } from './archive.ts'
import { age } from './audit-log.ts'
import type { Cluster } from './cluster.ts'
import { type DatabaseUrls, withClient } from './databases.ts'
import { type Acknowledged, startLoad } from './drill-load.ts'
import { differences, readObjects, readState, readTables, type State } from './drill-state.ts'
import { form, onePixel } from './forms.ts'
import {
  commandFile,
  createTenant,
  elsewhere,
  eventually,
  type Owner,
  run,
  startServer,
  type Tenant,
  temporaryFolder,
  testEnvironment
} from './harness.ts'
import { stopwatch } from './machine.ts'
import { urlsOf } from './stand.ts'

/*
 * A drill: the product runs with its database archived and its files copied, clients write, everything but the bucket for backups is
 * destroyed, and the product is restored to a second of choice and compared with what it was then.
 */

export type DrillOptions = {
  agencies: number
  /** People of each agency that nobody signs in as: rows for a large drill. */
  people: number
  clients: number
  /** Seconds of writing before the chosen second, and again after it. */
  seconds: number
  fileBytes: number
}

export type DrillReport = {
  ok: boolean
  /** What is not as it was at the chosen second, and every other broken promise. */
  problems: string[]
  restored_to: string
  acknowledged_before: number
  lost: number
  /** Writes after the chosen second, which a restore to it gives up. */
  acknowledged_after: number
  rows: number
  objects: number
  audit_chains: number
  seconds: { base_backup: number; database: number; files: number; until_it_serves: number }
}

/** Runs a drill. Everything that it starts ends with its owner. */
export async function runDrill(owner: Owner, options: DrillOptions, say: (line: string) => void): Promise<DrillReport> {
  if (!s3Server) throw new Error('there is no S3 server')
  const folder = temporaryFolder(owner)
  const backups = await startBackupStore(owner)
  const archive = await startArchive(owner, backups)
  const product = await s3Server.start(owner)
  const environmentOn = (cluster: Cluster, store: typeof product): Environment =>
    testEnvironment(databaseOf(cluster), { DATA_DIR: join(folder, 'data'), ...store.environment })
  const env = environmentOn(archive.cluster, product)

  const tenants = await seed(env, archive.cluster, options)
  const backupSeconds = await timed(() => archive.tool('base'))
  say(`${tenants.length} agencies; the base backup took ${backupSeconds} s`)
  const server = await startServer(owner, env)
  const copying = startCopying(owner, { ...env, ...backups.environment })

  const load = startLoad(server.url, tenants, options)
  await sleep(options.seconds * 1000)
  const before = await load.pause()
  const store = createS3Store(product.s3.root)
  const { at, ...state } = await readState(archive.cluster.url('postgres'), store)
  store.close()
  load.resume()
  say(`${before.length} writes were acknowledged before ${at.toISOString()}, the second to restore to`)
  await sleep(options.seconds * 1000)
  await copying.untilComplete(at)
  const after = await load.pause()
  await archive.flush()

  say(`${after.length} more were acknowledged; everything but the bucket for backups is destroyed now`)
  for (const { child } of [server, copying]) child.kill('SIGKILL')
  await Promise.all([server.exited, copying.exited, archive.cluster.kill('SIGKILL')])
  const exited = new Promise((done) => product.s3.child.once('exit', done))
  product.s3.child.kill('SIGKILL')
  await exited
  for (const path of [archive.cluster.data, product.folder])
    rmSync(path, { recursive: true, force: true, maxRetries: 5 })

  const untilItServes = stopwatch()
  const restored = await archive.restore(join(folder, 'restored'), at)
  const databaseSeconds = rounded(untilItServes())
  // before the product starts, which writes
  const tables = await withClient(restored.url('postgres'), readTables)
  const problems = await missing(restored, before, after)
  const elsewhereStore = await s3Server.start(owner)
  const restoredEnv = environmentOn(restored, elsewhereStore)
  const filesSeconds = await timed(() => command({ ...restoredEnv, ...backups.environment }, 'restore'))
  const again = await startServer(owner, restoredEnv)
  const servesSeconds = rounded(untilItServes())

  const restoredStore = createS3Store(elsewhereStore.s3.root)
  const found: State = { tables, objects: await readObjects(restoredStore) }
  restoredStore.close()
  const lost = problems.filter((line) => line.startsWith('lost')).length
  problems.push(...differences(state, found), ...load.faults, ...(await brokenChains(again.url, tenants)))
  const compared = await command(restoredEnv, 'compare')
  if (!compared.startsWith('0 files without their bytes, 0 objects without a row, 0 wrong counts'))
    problems.push(compared)
  await command(restoredEnv, 'accept-store')
  return {
    ok: problems.length === 0,
    problems,
    restored_to: at.toISOString(),
    acknowledged_before: before.length,
    lost,
    acknowledged_after: after.length,
    rows: Object.values(found.tables).reduce((sum, { rows }) => sum + rows, 0),
    objects: Object.keys(found.objects).length,
    audit_chains: tenants.length,
    seconds: {
      base_backup: backupSeconds,
      database: databaseSeconds,
      files: filesSeconds,
      until_it_serves: servesSeconds
    }
  }
}

const rounded = (ms: number) => Math.round(ms / 100) / 10

async function timed(work: () => Promise<unknown>): Promise<number> {
  const elapsed = stopwatch()
  await work()
  return rounded(elapsed())
}

function databaseOf(cluster: Cluster): DatabaseUrls {
  const urls = urlsOf(cluster)
  return { ...urls, serving: urls.app }
}

/** Makes agencies with a logo and a file each, and seals their audit log. */
async function seed(env: Environment, cluster: Cluster, { agencies, people }: DrillOptions): Promise<Tenant[]> {
  if (people > 0) {
    const words = ['--tenants', String(agencies), '--users', String(people), '--name', 'crowd']
    await run(process.execPath, [...process.execArgv, commandFile('seed'), ...words], {
      cwd: elsewhere,
      env: env as NodeJS.ProcessEnv
    })
  }
  const app = Object.assign(buildApp(readConfig(env)), { database: databaseOf(cluster), logLines: [] })
  await app.ready()
  try {
    const tenants: Tenant[] = []
    for (let number = 1; number <= agencies; number++) {
      const tenant = await createTenant(app, `drill-${number}`)
      const logo = form([{ name: 'file', filename: 'logo.png', type: 'image/png', content: onePixel }])
      const reply = await tenant.send({ method: 'PUT', url: '/api/v1/tenant/logo', ...logo })
      if (reply.statusCode !== 200) throw new Error(`logo: ${reply.statusCode} ${reply.body}`)
      tenants.push(tenant)
    }
    await age(app)
    await app.housekeeping.run()
    return tenants
  } finally {
    await app.close()
  }
}

/** Copies the files as the container of compose.backup.yaml does, but each second. */
function startCopying(owner: Owner, env: Environment) {
  const words = [...process.execArgv, commandFile('files'), 'backup', '--every', '1']
  const child = spawn(process.execPath, words, { cwd: elsewhere, env: env as NodeJS.ProcessEnv, stdio: 'ignore' })
  const exited = once(child, 'exit')
  owner.teardown(async () => {
    child.kill('SIGKILL')
    await exited
  })
  return {
    child,
    exited,
    async untilComplete(at: Date): Promise<void> {
      const config = readBackupConfig(env)
      const [source, bucket] = [await openStore(config), await openBackup(config)]
      await eventually(async () => {
        await sleep(200)
        const installation = await readStoreInstallation(source)
        const until = installation && (await completeUntil(openObjectBackup(bucket, installation)))
        return Boolean(until && until > at)
      }, 120_000)
      source.close()
      bucket.close()
    }
  }
}

/** Runs a subcommand of `npm run files`, and resolves to what it says. */
async function command(env: Environment, name: string): Promise<string> {
  const words = [...process.execArgv, commandFile('files'), name]
  const { stdout, stderr } = await run(process.execPath, words, { cwd: elsewhere, env: env as NodeJS.ProcessEnv })
  return stdout + stderr
}

/** Names what was acknowledged before the second and is lost, and what was acknowledged after it and is there. */
function missing(cluster: Cluster, before: Acknowledged[], after: Acknowledged[]): Promise<string[]> {
  return withClient(cluster.url('postgres'), async (client) => {
    const ids = async (list: Acknowledged[]) => {
      const { rows } = await client.query<{ id: string }>(
        'select id from invitations where id = any ($1) union all select id from files where id = any ($1)',
        [list.map(({ id }) => id)]
      )
      return new Set(rows.map(({ id }) => id))
    }
    const [kept, late] = [await ids(before), await ids(after)]
    return [
      ...before.filter(({ id }) => !kept.has(id)).map(({ kind, id }) => `lost: ${kind} ${id}`),
      ...after.filter(({ id }) => late.has(id)).map(({ kind, id }) => `later than the chosen second: ${kind} ${id}`)
    ]
  })
}

/** Signs in to each agency, and names those whose audit log is not intact. */
async function brokenChains(url: string, tenants: Tenant[]): Promise<string[]> {
  const problems: string[] = []
  for (const { slug, owner } of tenants) {
    const headers = { authorization: `Bearer ${owner.tokens.access_token}` }
    const reply = await fetch(`${url}/api/v1/audit-events/verify`, { headers })
    const answer = (await reply.json()) as { status: string; sealed_events: number }
    if (answer.status !== 'intact' || !(answer.sealed_events > 0))
      problems.push(`audit log of ${slug}: ${JSON.stringify(answer)}`)
  }
  return problems
}

import { once } from 'node:events'
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { Refusal } from '../src/cli/operator.ts'
import { finishDatabase, rotateDatabase } from '../src/cli/rotate/database.ts'
import { withRotationLock } from '../src/cli/rotate/lock.ts'
import { finishTokens, rotateTokens } from '../src/cli/rotate/rings.ts'
import type { Rotation } from '../src/cli/rotate/rotation.ts'
import { rotateStoreKey } from '../src/cli/rotate/s3.ts'
import { readConfig } from '../src/config/config.ts'
import type { Environment } from '../src/config/environment.ts'
import { createKeyRing } from '../src/keys.ts'
import { databaseUrls, withClient } from './databases.ts'
import { commandFile, eventually, run, startServer, temporaryFolder, testEnvironment } from './harness.ts'
import { freePort } from './ports.ts'
import { otherStrongSecret, strongSecret } from './tokens.ts'

/*
 * A rotation that stops at any point goes on when it is run again. The servers are a list of what they were told to use: what
 * happens to real ones is in rotation.test.ts.
 */

/** Makes a folder with files of secrets, and a rotation that works on them. */
function startSteps(t: Test, secrets: Record<string, string>, more: Environment = {}) {
  const folder = temporaryFolder(t)
  const file = (name: string) => join(folder, name.toLowerCase())
  const read = (name: string) => readFileSync(file(name), 'utf8').trim()
  const env: Environment = { ...testEnvironment(databaseUrls('postgres')), DATA_DIR: folder, ...more }
  const config = readConfig(env)
  for (const [name, text] of Object.entries(secrets)) {
    delete env[name]
    env[`${name}_FILE`] = file(name)
    writeFileSync(file(name), `${text}\n`)
  }
  const waits: string[] = []
  const world = {
    ...{ file, read, waits },
    /** How often the servers follow, before one stays behind. */
    patience: Number.POSITIVE_INFINITY
  }
  const rotation: Rotation = {
    ...{ config, env, step: () => {} },
    fleet: {
      behind: async () => [],
      async waitFor(name, values) {
        if (values.join(',') !== read(name)) throw new Error(`waits for something that is not in the file ${name}`)
        if (world.patience-- <= 0) throw new Refusal('a process is behind')
        waits.push(read(name))
      }
    }
  }
  return Object.assign(world, { rotation })
}

const idOf = (secret: string) => createKeyRing([secret], 'access token').first.id
const [OLD, NEW, OTHER] = [strongSecret, otherStrongSecret, 'y3t-an0th3r-k3y-0f-th1rty-tw0-byt3s']
const later = { step: 'switched', at: new Date().toISOString() }

t.test('a ring goes on wherever it stopped, and never drops the key that it has made', async (t) => {
  // what an interruption can leave behind, and what an operator's hand can
  const states = {
    'nothing was done': { keys: [OLD] },
    'only the notes were written': { keys: [OLD], notes: { step: 'appended', key: idOf(NEW) } },
    'the key was appended': { keys: [OLD, NEW], notes: { step: 'appended', key: idOf(NEW) } },
    'the key was put in front, and a process stayed behind': {
      keys: [NEW, OLD],
      notes: { step: 'appended', key: idOf(NEW) }
    },
    'the key is in front everywhere': { keys: [NEW, OLD], notes: { step: 'switched', key: idOf(NEW) } },
    'the old key was dropped, and the notes were not': {
      keys: [NEW],
      notes: { step: 'switched', key: idOf(NEW) },
      gone: NEW
    },
    'the key was appended, and the notes were lost': { keys: [OLD, NEW] },
    'the notes are those of another key': { keys: [OTHER, OLD], notes: { step: 'switched', key: idOf(NEW) } }
  }
  for (const [name, { keys, notes, gone = OLD }] of Object.entries<{ keys: string[]; notes?: object; gone?: string }>(
    states
  )) {
    for (let patience = 0; patience < 4; patience++) {
      const world = startSteps(t, { JWT_SECRET: keys.join(',') })
      if (notes) writeFileSync(`${world.file('JWT_SECRET')}.rotation`, JSON.stringify({ ...later, ...notes }))
      world.patience = patience
      await rotateTokens(world.rotation).catch(() => {})
      world.patience = Number.POSITIVE_INFINITY
      await rotateTokens(world.rotation)
      const [first = '', ...others] = world.read('JWT_SECRET').split(',')
      t.not(first, gone, `${name}: another key signs`)
      t.ok(others.includes(gone), 'and the one before is still known')
      for (const [index, now] of world.waits.entries()) {
        const before = index === 0 ? keys : (world.waits[index - 1] ?? '').split(',')
        const signs = now.split(',')[0] ?? ''
        if (index > 0 || signs !== keys[0])
          t.ok(before.includes(signs), 'each process knows a key before one signs with it')
      }
      await t.rejects(finishTokens(world.rotation, { now: false }), /may be dropped from/)
      world.patience = 1
      await t.rejects(
        finishTokens(world.rotation, { now: true }),
        /a process is behind/,
        'interrupted when the old keys were dropped'
      )
      world.patience = Number.POSITIVE_INFINITY
      await finishTokens(world.rotation, { now: false })
      t.equal(world.read('JWT_SECRET'), first)
      t.notOk(existsSync(`${world.file('JWT_SECRET')}.rotation`))
      await t.rejects(finishTokens(world.rotation, { now: true }), /nothing to finish/)
    }
  }
})

t.test('a ring that was changed by hand can be finished, after the time of its sessions', async (t) => {
  const world = startSteps(t, { JWT_SECRET: `${NEW},${OLD}` })
  await t.rejects(finishTokens(world.rotation, { now: false }), /may be dropped from/)
  await finishTokens(world.rotation, { now: true })
  t.equal(world.read('JWT_SECRET'), NEW)
})

t.test('nothing changes where the notes can not be written, or the pepper depends on the key', async (t) => {
  const world = startSteps(t, { JWT_SECRET: OLD })
  mkdirSync(`${world.file('JWT_SECRET')}.rotation.new`)
  await t.rejects(rotateTokens(world.rotation), /rotation can't be written \(EISDIR\)/)
  const derived = { ...world.rotation, env: { ...world.rotation.env, PASSWORD_PEPPER: '' } }
  await t.rejects(rotateTokens(derived), /PASSWORD_PEPPER is not set/)
  t.equal(world.read('JWT_SECRET'), OLD)
})

/** Works as a user who is not root, to whom a file can be read-only. */
async function unprivileged(path: string, work: () => Promise<unknown>): Promise<void> {
  const nobody = 65_534
  const root = process.geteuid?.() === 0
  chmodSync(path, 0o400)
  if (root) {
    const folder = join(path, '..')
    for (const each of ['', ...readdirSync(folder)]) chownSync(join(folder, each), nobody, nobody)
    process.seteuid?.(nobody)
  }
  try {
    await work()
  } finally {
    if (root) process.seteuid?.(0)
    chmodSync(path, 0o600)
  }
}

t.test('the key of the store changes in both files, or a run is needed that names them again', async (t) => {
  const world = startSteps(t, { S3_ACCESS_KEY: 'old', S3_SECRET_KEY: 'the secret of old' })
  const [accessKeyFile, secretKeyFile] = [world.file('new_access'), world.file('new_secret')]
  writeFileSync(accessKeyFile, 'new')
  writeFileSync(secretKeyFile, 'the secret of new')
  const given = { accessKeyFile, secretKeyFile }
  const none = { accessKeyFile: undefined, secretKeyFile: undefined }
  const pair = () => [world.read('S3_ACCESS_KEY'), world.read('S3_SECRET_KEY')]

  for (const name of ['S3_ACCESS_KEY', 'S3_SECRET_KEY']) {
    await unprivileged(world.file(name), async () => {
      await t.rejects(rotateStoreKey(world.rotation, given), /can't be written \(EACCES\)/)
      await t.rejects(rotateStoreKey(world.rotation, none), /EACCES/, 'and a second run does not say that it is done')
    })
    t.strictSame(pair(), ['old', 'the secret of old'])
  }

  // what a run leaves behind that was killed between the two files
  writeFileSync(world.file('S3_SECRET_KEY'), 'the secret of new')
  writeFileSync(`${world.file('S3_ACCESS_KEY')}.rotation`, JSON.stringify({ ...later, from: 'old' }))
  await t.rejects(rotateStoreKey(world.rotation, none), /name its two files/)
  await t.rejects(rotateStoreKey(world.rotation, { ...given, accessKeyFile: world.file('S3_ACCESS_KEY') }), /in use/)
  // and one that was killed when it had written both
  writeFileSync(world.file('S3_ACCESS_KEY'), 'new')
  world.patience = 1
  await t.rejects(rotateStoreKey(world.rotation, given), /a process is behind/)
  world.patience = 2
  t.match(await rotateStoreKey(world.rotation, none), /Disable old in/)
})

t.test('the database changes its role in each file, and no role is locked that a file names', async (t) => {
  const { postgres, app } = databaseUrls('postgres')
  const urls = { DATABASE_URL: app, DATABASE_REPLICA_URL: app }
  const world = startSteps(t, urls, { ...urls, DATABASE_ADMIN_URL: postgres })
  t.teardown(() => withClient(postgres, (client) => client.query('alter role aggios_app_b nologin password null')))
  const role = (name: string) => new URL(world.read(name)).username
  const logIn = (name: string) => withClient(world.read(name), (client) => client.query('select'))

  await unprivileged(world.file('DATABASE_REPLICA_URL'), () =>
    t.rejects(rotateDatabase(world.rotation), /database_replica_url can't be written/)
  )
  t.strictSame([role('DATABASE_URL'), existsSync(`${world.file('DATABASE_URL')}.rotation`)], ['aggios_app', false])

  await rotateDatabase(world.rotation)
  await logIn('DATABASE_URL')
  const used = world.read('DATABASE_URL')
  // what a run leaves behind that was killed between the two files
  writeFileSync(world.file('DATABASE_REPLICA_URL'), app)
  await t.rejects(finishDatabase(world.rotation), /database_replica_url still names aggios_app/)
  await withClient(used, async () => {
    await rotateDatabase(world.rotation)
    t.equal(world.read('DATABASE_URL'), used, 'servers that use the new password keep it')
    t.equal(world.read('DATABASE_REPLICA_URL'), used)
    // a run for another installation on the same server
    const other = startSteps(t, { DATABASE_URL: app }, { DATABASE_ADMIN_URL: postgres })
    await t.rejects(rotateDatabase(other.rotation), /1 connections of aggios_app_b are open/)
    t.equal(other.read('DATABASE_URL'), app)
  })
  await logIn('DATABASE_URL')
})

t.test('two rotations at once are one and a refusal', async (t) => {
  const { app } = databaseUrls('postgres')
  const world = startSteps(t, { JWT_SECRET: OLD })
  const env = { PATH: process.env.PATH, ...world.rotation.env, METRICS_PORT: '9' } as NodeJS.ProcessEnv
  await withRotationLock(app, () =>
    t.rejects(run(process.execPath, [commandFile('rotate'), 'jwt'], { env }), /another rotation is under way/)
  )
  t.equal(world.read('JWT_SECRET'), OLD)
  t.equal(await withRotationLock(app, async () => 'free again'), 'free again')
})

t.test('SIGHUP during the start ends nothing', async (t) => {
  // the start waits for a database that takes the connection and says nothing
  const silent = createServer(() => {}).listen(0, '127.0.0.1')
  t.teardown(() => silent.close())
  await once(silent, 'listening')
  const { port } = silent.address() as { port: number }
  const database = { DATABASE_URL: `postgres://aggios_app:any@127.0.0.1:${port}/aggios` }
  const { rotation } = startSteps(t, { JWT_SECRET: OLD }, database)
  const metrics = await freePort()
  const server = await startServer(t, { ...rotation.env, METRICS_PORT: String(metrics) }, { ready: false })
  await eventually(() =>
    fetch(`http://127.0.0.1:${metrics}/health`).then(
      () => true,
      () => false
    )
  )
  server.child.kill('SIGHUP')
  t.equal(await Promise.race([server.exited, sleep(500, 'it goes on')]), 'it goes on')
})

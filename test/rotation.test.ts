import { mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { openGate } from '../src/cli/operator.ts'
import { finishDatabase, rotateDatabase } from '../src/cli/rotate/database.ts'
import { rotateClientSecret } from '../src/cli/rotate/provider.ts'
import { finishRedis, rotateRedis } from '../src/cli/rotate/redis.ts'
import { finishPepper, finishTokens, rotatePepper, rotateTokens } from '../src/cli/rotate/rings.ts'
import { rotateStoreKey } from '../src/cli/rotate/s3.ts'
import { list } from '../src/config/value-readers.ts'
import { createS3Store } from '../src/files/store/s3.ts'
import { createKeyRing } from '../src/keys.ts'
import { withClient } from './databases.ts'
import { commandFile, eventually, run, type Tokens } from './harness.ts'
import { comeBack, startWorld } from './rotation-world.ts'
import { me, refresh } from './server-calls.ts'
import { decode, makeToken, otherStrongSecret } from './tokens.ts'

// rehearsal: every secret is replaced under load

/*
 * Each secret is rotated while clients use the server: no request fails, and nobody is signed out.
 */

const kidOf = (tokens: Tokens | undefined) => String(decode(tokens?.access_token as string).header.kid)
const read = (path: string) => readFileSync(path, 'utf8').trim()

t.test('each secret is replaced under load', async (t) => {
  const world = await startWorld(t)
  const { server, load, file } = world

  /** Runs a rotation, and says that the load has met no failure, and was there. */
  async function underLoad(name: string, work: (t: Test) => Promise<void>): Promise<void> {
    await t.test(name, async (t) => {
      const before = { ...load.counts }
      await work(t)
      await sleep(300)
      t.strictSame(load.faults.splice(0), [], 'no request has failed')
      for (const kind of ['read', 'refresh', 'sign_in', 'upload']) {
        t.ok((load.counts[kind] ?? 0) > (before[kind] ?? 0), `there were requests: ${kind}`)
      }
    })
  }

  await eventually(() => Object.keys(load.counts).length === 4)
  const old = { ...(load.sessions[0] as Tokens) }
  const oldSecret = read(file('JWT_SECRET'))
  const { header, claims } = decode(old.access_token)

  await underLoad('jwt', async (t) => {
    await rotateTokens(world.rotation())
    await eventually(() => kidOf(load.sessions[0]) !== kidOf(old))
    t.equal((await me(server, old.access_token)).status, 200, 'tokens of the old key are good')
    await t.rejects(finishTokens(world.rotation(), { now: false }), /may be dropped from/)
    const command = [commandFile('rotate'), 'jwt', '--finish', '--now']
    await t.rejects(
      run(process.execPath, command, { env: { PATH: process.env.PATH, ...world.rotation().env } as NodeJS.ProcessEnv }),
      { code: 2 },
      'the command demands --yes'
    )
    await finishTokens(world.rotation(), { now: true })
    t.match(
      (await me(server, old.access_token)).body,
      { code: 'invalid_token' },
      'a token of the old key, which was remembered'
    )
    t.match((await me(server, makeToken(header, claims, oldSecret))).body, { code: 'invalid_token' })
    t.equal((await refresh(server, old.refresh_token)).status, 401)
  })

  await underLoad('pepper', async (t) => {
    const { gate, pool } = openGate(read(file('DATABASE_URL')), { statement_timeout: 5000, lock_timeout: 5000 })
    const before = read(file('PASSWORD_PEPPER'))
    await rotatePepper(world.rotation(), gate)
    const { first } = createKeyRing(list(read(file('PASSWORD_PEPPER'))), 'pepper')
    await eventually(async () => {
      const { rows } = await withClient(world.postgres, (client) => client.query('select pepper_id from users'))
      return rows.every(({ pepper_id }) => pepper_id === first.id)
    })
    await finishPepper(world.rotation(), gate)
    await pool.end()
    t.notOk(read(file('PASSWORD_PEPPER')).includes(before), 'the old one is gone')
  })

  await underLoad('database', async (t) => {
    const before = read(file('DATABASE_URL'))
    const rotation = world.rotation({ DATABASE_ADMIN_URL: world.postgres })
    await rotateDatabase(rotation)
    await finishDatabase(rotation)
    t.match(read(file('DATABASE_URL')), '//aggios_app_b:')
    await t.rejects(
      withClient(before, async () => {}),
      { code: '28P01' },
      'the old login is locked'
    )
  })

  if (world.redis) {
    const { admin } = world.redis
    await underLoad('redis', async (t) => {
      const before = read(file('REDIS_URL'))
      // as db/deploy/redis.sh makes the user
      await admin.call('ACL', 'SETUSER', 'rotator', 'on', '>any', '-@all', '+acl|setuser', '+acl|getuser')
      const rotation = world.rotation({ REDIS_ADMIN_URL: `redis://rotator:any@127.0.0.1:${world.redis?.port}` })
      await rotateRedis(rotation)
      await finishRedis(rotation)
      const late = new Redis(before, { lazyConnect: true, retryStrategy: () => null })
      late.on('error', () => {})
      await t.rejects(
        late.connect().then(() => late.ping()),
        'the old password is refused'
      )
      late.disconnect()
      t.match(String(await admin.call('CLIENT', 'LIST')), /user=aggios/, 'and the servers are connected')
    })
  }

  const { store } = world
  if (store) {
    await underLoad('s3', async (t) => {
      const [accessKeyFile, secretKeyFile] = [file('new_access'), file('new_secret')]
      writeFileSync(accessKeyFile, 'aggios-app-two')
      writeFileSync(secretKeyFile, 'the secret of the second key')
      const given = { accessKeyFile, secretKeyFile }
      await t.rejects(rotateStoreKey(world.rotation(), given), /does not work, and nothing was changed/)
      await store.addKey('aggios-app-two', 'the secret of the second key')
      // what a run leaves behind that was killed between the two files: the servers refuse the pair
      writeFileSync(file('S3_SECRET_KEY'), 'the secret of the second key')
      const notes = { step: 'switched', at: new Date().toISOString(), from: 'aggios-app' }
      writeFileSync(`${file('S3_ACCESS_KEY')}.rotation`, JSON.stringify(notes))
      await rotateStoreKey(world.rotation(), given)
      await store.disable('aggios-app')
      const before = createS3Store(store.s3.app)
      await t.rejects(before.check(), { message: /is refused/ }, 'the old key is refused')
      before.close()
    })
  }

  await underLoad('provider', async (t) => {
    const { provider } = world
    writeFileSync(file('new'), 'the-new-secret-of-the-client')
    await t.rejects(rotateClientSecret(world.rotation(), 'google', file('new')), /does not know the new secret/)
    provider.secrets.push('the-new-secret-of-the-client')
    await rotateClientSecret(world.rotation(), 'google', file('new'))
    provider.secrets.shift()
    for (let round = 0; round < 3; round++) await comeBack(server)
    t.equal(provider.used.at(-1), 'the-new-secret-of-the-client')
  })

  await underLoad('links that are swapped, files that are empty, SIGHUP, and a worker that is replaced', async (t) => {
    const health = async () => {
      const reply = await fetch(`http://127.0.0.1:${world.env.METRICS_PORT}/health`)
      return (await reply.json()) as {
        secret_files: { status: string; problems: string[] }
        workers: { pid: number }[]
      }
    }
    const path = file('JWT_SECRET')
    const keys = read(path)
    // as Kubernetes changes the files of a Secret: a link to a folder is replaced in one step
    for (const [folder, text] of [
      ['one', keys],
      ['two', `${keys},${otherStrongSecret}`]
    ] as const) {
      mkdirSync(file(folder))
      writeFileSync(join(file(folder), 'jwt_secret'), text)
    }
    symlinkSync('one', file('data'))
    rmSync(path)
    symlinkSync(join('data', 'jwt_secret'), path)
    symlinkSync('two', file('next'))
    renameSync(file('next'), file('data'))
    const { fleet } = world.rotation()
    await fleet.waitFor('JWT_SECRET', [keys, otherStrongSecret])

    rmSync(path)
    writeFileSync(path, '')
    await eventually(async () => (await health()).secret_files.status === 'refused', 60_000)
    t.match((await health()).secret_files.problems, [/^JWT_SECRET_FILE: is empty/])
    t.strictSame(await fleet.behind('JWT_SECRET', [keys, otherStrongSecret]), [], 'the keys before stay in force')

    writeFileSync(path, `${otherStrongSecret},${keys}`)
    server.child.kill('SIGHUP')
    await fleet.waitFor('JWT_SECRET', [otherStrongSecret, keys])
    t.equal(server.child.exitCode, null, 'the signal ends nothing')
  })

  await t.test('a worker that takes the place of another one has the new secrets', async (t) => {
    await load.stop()
    const { fleet } = world.rotation()
    const pids = async () => {
      const reply = await fetch(`http://127.0.0.1:${world.env.METRICS_PORT}/health`)
      return ((await reply.json()) as { workers: { pid: number }[] }).workers.map(({ pid }) => pid)
    }
    const [first = 0, second = 0] = await pids()
    for (const pid of [first, second]) {
      process.kill(pid, 'SIGKILL')
      await eventually(async () => (await pids()).every((each) => each !== undefined && each !== pid), 60_000)
    }
    for (const name of ['JWT_SECRET', 'PASSWORD_PEPPER']) await fleet.waitFor(name, read(file(name)).split(','))
    await fleet.waitFor('DATABASE_URL', [read(file('DATABASE_URL'))])
    t.equal((await refresh(server, load.sessions[0]?.refresh_token as string)).status, 200)
  })

  t.comment(JSON.stringify(load.counts))
})

import t from 'tap'
import { commandFile, createTestDatabase, elsewhere, eventually, run, startServer, testEnvironment } from './harness.ts'
import { freePort } from './ports.ts'

/*
 * The level of the log is changed while the server runs: by the internal listener, by a command and by a signal, in every
 * process, for a while, and each change is a line of the log.
 */

type Body = { level: string; until: string; workers: { pid: number }[] }

t.test('the level of the log', async (t) => {
  const internalPort = await freePort()
  const settings = { WEB_CONCURRENCY: '2', METRICS_PORT: String(internalPort), LOG_LEVEL: 'error', LOG_FORMAT: 'ecs' }
  const env = testEnvironment(await createTestDatabase(t), { ...settings, DATABASE_POOL: '3' })
  const server = await startServer(t, env)
  const internal = async (path: string, init: RequestInit = {}) => {
    const reply = await fetch(`http://127.0.0.1:${internalPort}${path}`, init)
    return { status: reply.status, body: (await reply.json()) as Body }
  }
  const change = (body: object) =>
    internal('/log-level', {
      method: 'PUT',
      body: JSON.stringify(body),
      headers: { 'content-type': 'application/json' }
    })
  const level = async () => (await internal('/log-level')).body.level
  const lines = () =>
    server
      .output()
      .split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line))
  const changes = () => lines().flatMap((line) => line['aggios.log_level'] ?? [])
  /** Waits for the line of the last change, which may come after the reply. */
  async function lastChange(by: string, to: string) {
    await eventually(() => changes().at(-1)?.by === by && changes().at(-1)?.to === to)
    return changes().at(-1)
  }
  const pids = async () => (await internal('/health')).body.workers.map(({ pid }) => pid)

  /** The processes that log a read, which the level `debug` adds. */
  async function talkative(): Promise<Set<number>> {
    const before = lines().length
    for (let i = 0; i < 40; i++) await server.fetch('/api/v1/health/live', { headers: { connection: 'close' } })
    return new Set(
      lines()
        .slice(before)
        .filter((line) => line['log.level'] === 'debug' && line.message === 'request')
        .map((line) => line['process.pid'])
    )
  }
  const allTalk = async () => {
    const [talking, all] = [await talkative(), await pids()]
    return all.length === 2 && all.every((pid) => talking.has(pid))
  }

  await t.test('changes in every process, for a while', async (t) => {
    t.match(await internal('/log-level'), { body: { level: 'error', configured: 'error', until: null } })
    t.equal((await talkative()).size, 0)
    const { body } = await change({ level: 'debug', for: 3600 })
    t.match(body, { level: 'debug', configured: 'error', until: String })
    t.ok(Math.abs(Date.parse(body.until) - Date.now() - 3_600_000) < 60_000)
    await eventually(allTalk)
    t.match(await lastChange('127.0.0.1', 'debug'), { from: 'error', until: body.until })
    t.equal(changes().length, 1)
    await change({ level: 'debug', for: 1 })
    await eventually(async () => (await level()) === 'error')
    t.match(await lastChange('the time limit', 'error'), { from: 'debug', until: null })
    await eventually(async () => (await talkative()).size === 0)
  })

  await t.test('holds for a worker that starts meanwhile, and is changed by a command', async (t) => {
    const command = (...words: string[]) =>
      run(process.execPath, [commandFile('aggios'), 'log-level', ...words], {
        cwd: elsewhere,
        env: { ...process.env, ...env } as NodeJS.ProcessEnv
      })
    t.match((await command('debug', '--for', '600')).stdout, /^debug until .*Z, then error\n$/)
    const [first] = await pids()
    process.kill(first as number, 'SIGKILL')
    await eventually(async () => !(await pids()).includes(first as number) && (await allTalk()), 60_000)
    t.strictSame(JSON.parse((await command('error', '--json')).stdout), {
      ...{ level: 'error', configured: 'error', until: null }
    })
    t.equal((await command()).stdout, 'error\n')
    t.match(await command('loud').catch((err) => err), { code: 2, stderr: /Allowed choices/ })
  })

  await t.test('is changed by a signal, and back by the next one', async (t) => {
    for (const pid of [server.child.pid as number, ...(await pids())]) process.kill(pid, 'SIGUSR2')
    await eventually(async () => (await level()) === 'debug')
    t.match(await lastChange('SIGUSR2', 'debug'), { from: 'error' })
    server.child.kill('SIGUSR2')
    await eventually(async () => (await level()) === 'error')
    t.match(await lastChange('SIGUSR2', 'error'), { from: 'debug' })
    t.equal((await pids()).length, 2, 'no process has ended')
  })

  await t.test('is refused where it is none, and on the public port', async (t) => {
    const before = changes().length
    for (const wrong of [{ level: 'loud' }, { for: 60 }, { level: 'debug', for: 0 }, { level: 'debug', for: 86_401 }]) {
      t.match(await change(wrong), { status: 400, body: { code: 'validation_failed' } }, JSON.stringify(wrong))
    }
    t.match(await change({ level: 'debug', forever: true }), { status: 400 })
    t.match(await internal('/log-level', { method: 'POST' }), { status: 405, body: { code: 'method_not_allowed' } })
    for (const path of ['/log-level', '/api/v1/log-level']) t.equal((await server.fetch(path)).status, 404)
    t.equal(changes().length, before)
  })
})

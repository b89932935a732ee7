import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { classifyFailure } from '../db/gate/failures.ts'
import type { GateSettings } from '../db/gate/gate-query.ts'
import { createPipeline, type Pipeline } from '../db/gate/pipeline.ts'
import { codeOf, foreign, inA, inB, message, prepare, type Row } from './gate-trials.ts'
import { eventually } from './harness.ts'
import { stopwatch } from './machine.ts'

// bounded in time: when a connection counts as dead

/*
 * The pipeline without the gate, which would repeat a query: unexpected messages of PostgreSQL, missing ones, and the end of a
 * connection.
 */

const config = {
  rows: {
    name: 'rows',
    text: "select tenant_id, current_setting('app.tenant_id') as setting, 1 as one from memberships",
    values: []
  },
  slow: { name: 'slow', text: 'select pg_sleep(0.4)::text', values: [] },
  wrong: { name: 'wrong', text: 'select 1 / $1::int', values: ['0'] }
}

/** Resolves to the rows, or to the code of the failure. */
function ask(pipeline: Pipeline, settings: GateSettings, what: keyof typeof config): Promise<unknown> {
  return new Promise((resolve) => {
    pipeline.query(settings, config[what], (err, rows) => resolve(err ? codeOf(err) : rows))
  })
}

/** A proxy in front of PostgreSQL that can add messages and hold messages back. */
async function startMiddle(t: Test, target: string) {
  const { hostname, port } = new URL(target)
  const sockets = new Set<Socket>()
  let silent = false
  let before: Buffer | undefined
  let instead: Buffer | undefined
  const server = createServer((near) => {
    const far = connect(Number(port), hostname)
    sockets.add(near)
    near.on('data', (chunk) => {
      if (instead) {
        near.end(instead)
        instead = undefined
        return
      }
      if (before) near.write(before)
      before = undefined
      far.write(chunk)
    })
    far.on('data', (chunk) => silent || near.write(chunk))
    far.on('close', () => silent || near.destroy())
    near.on('close', () => {
      sockets.delete(near)
      far.destroy()
    })
    for (const socket of [near, far]) socket.on('error', () => {})
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  const url = new URL(target)
  url.port = String((server.address() as { port: number }).port)
  return {
    url: url.href,
    say(bytes: Buffer) {
      for (const socket of sockets) socket.write(bytes)
    },
    /** Sends this before the answer to the next query. */
    sayBefore(bytes: Buffer) {
      before = bytes
    },
    /** Sends this instead of the answer, and ends the connection. */
    sayInstead(bytes: Buffer) {
      instead = bytes
    },
    silence() {
      silent = true
    }
  }
}

t.test('what PostgreSQL says unasked', async (t) => {
  const { app } = await prepare(t)
  const middle = await startMiddle(t, app)
  const errors: string[] = []
  const pipeline = createPipeline(middle.url, 1, (err) => errors.push(err.message))
  t.teardown(() => pipeline.close())
  const isRight = async () => foreign(inA.tenant_id, (await ask(pipeline, inA, 'rows')) as Row[]) === 0
  const connects = () => pipeline.stats()[0]?.connects
  t.ok(await isRight())

  t.test('and may say at any time harms nothing', async (t) => {
    middle.sayBefore(message('N', 'SNOTICE\0C00000\0Mlook\0\0'))
    t.ok(await isRight())
    middle.say(message('S', 'TimeZone\0UTC\0'))
    middle.say(message('A', '\0\0\0\x07channel\0payload\0'))
    t.ok(await isRight())
    t.equal(connects(), 1)
  })
  t.test('and nobody understands costs the connection, and not the process', async (t) => {
    const row = message('D', '\0\x01\0\0\0\x01x')
    for (const bytes of [
      row,
      message('C', 'SELECT 1\0'),
      message('T', '\0\0'),
      message('T', '\0\x09'),
      message('I', '')
    ]) {
      const before = connects()
      errors.length = 0
      middle.say(bytes)
      await eventually(() => errors.length > 0)
      t.match(errors, [/^Connection terminated: /])
      t.ok(await isRight())
      t.equal(connects(), Number(before) + 1)
    }
  })
  t.test('in front of an answer gives nobody the rows of another', async (t) => {
    middle.sayBefore(message('C', 'SELECT 1\0'))
    const asked = [inA, inB, inA, inB]
    const answers = await Promise.all(asked.map((settings) => ask(pipeline, settings, 'rows')))
    for (const [index, { tenant_id }] of asked.entries()) {
      const rows = Array.isArray(answers[index]) ? (answers[index] as Row[]) : []
      t.ok(rows.every((row) => row.tenant_id === tenant_id))
    }
    t.match(answers.at(-1), /^Connection terminated/)
    t.ok(await isRight())
  })
  t.test('when it ends a connection is told to who asked as such, whatever its reason', async (t) => {
    for (const code of ['57P01', '57P04', '57P05', '25P03']) {
      middle.sayInstead(message('E', `SFATAL\0C${code}\0Mgood-bye\0\0`))
      const failure = await new Promise((resolve) => pipeline.query(inA, config.rows, resolve))
      t.match(failure, { code })
      t.equal(classifyFailure(failure), 'connection')
      t.ok(await isRight())
    }
  })
})

t.test('silence is measured by a clock that nobody sets', async (t) => {
  const { app } = await prepare(t)
  const middle = await startMiddle(t, app)
  const pipeline = createPipeline(middle.url, 1, () => {})
  t.teardown(() => pipeline.close())
  await ask(pipeline, inA, 'rows')
  middle.silence()
  const asked = ask(pipeline, inA, 'rows')
  await sleep(50)
  const { now } = Date
  t.teardown(() => Object.assign(Date, { now }))
  Date.now = () => now() - 3_600_000
  t.match(await Promise.race([asked, sleep(10_000, 'nothing', { ref: false })]), /^Connection terminated/)
})

t.test('when it is closed', async (t) => {
  const { app } = await prepare(t)
  const closedWithin = async (pipeline: Pipeline) => {
    const elapsed = stopwatch()
    await Promise.race([pipeline.close(), sleep(10_000, undefined, { ref: false })])
    return elapsed()
  }
  const settled = (asked: Promise<unknown>[]) =>
    Promise.all(asked.map((each) => Promise.race([each, sleep(8000, 'nothing', { ref: false })])))

  t.test('what is under way is answered, and all others are told', async (t) => {
    const pipeline = createPipeline(app, 1, () => {})
    await Promise.all((['rows', 'slow', 'wrong'] as const).map((what) => ask(pipeline, inA, what)))
    const underWay = (['rows', 'slow', 'wrong', 'rows'] as const).map((what) => ask(pipeline, inA, what))
    await sleep(100)
    const waiting = Array.from({ length: 40 }, (_, index) => ask(pipeline, index % 2 ? inA : inB, 'rows'))
    const closing = closedWithin(pipeline)
    const late = ask(pipeline, inA, 'rows')
    t.ok((await closing) < 2000)
    const [rows, slow, wrong, behind] = await settled(underWay)
    t.equal(foreign(inA.tenant_id, rows as Row[]), 0)
    t.equal((slow as unknown[]).length, 1)
    t.equal(wrong, '22012')
    t.equal(behind, 'Connection terminated', 'it would have to be sent again')
    const refused = await settled([...waiting, late, ask(pipeline, inA, 'rows')])
    t.strictSame([...new Set(refused)], ['the pipeline is closed'])
  })
  t.test('while its connections are being opened, nobody waits and none stays', async (t) => {
    const pipeline = createPipeline(app, 2, () => {})
    const asked = Array.from({ length: 40 }, () => ask(pipeline, inA, 'rows'))
    await sleep(5)
    t.ok((await closedWithin(pipeline)) < 3000)
    t.strictSame([...new Set(await settled(asked))], ['the pipeline is closed'])
    t.notOk(pipeline.stats().some(({ connected }) => connected))
  })
  t.test('a database that says nothing is left', async (t) => {
    const middle = await startMiddle(t, app)
    const pipeline = createPipeline(middle.url, 1, () => {})
    await ask(pipeline, inA, 'rows')
    middle.silence()
    const asked = ask(pipeline, inA, 'rows')
    await sleep(50)
    t.ok((await closedWithin(pipeline)) < 6000)
    t.match((await settled([asked]))[0], /^Connection terminated/)
  })
})

import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { allRows, createTenant, type Server, startApp, startServer, testEnvironment } from './harness.ts'
import { forgot, forgotToken, reset } from './mailed-links.ts'
import { login } from './requests.ts'

// bounded in time: that a request for a new password takes the same time whoever has the address

/*
 * Links in mails, with several processes, with one that is killed, and by the time that replies take.
 */

const fresh = 'an entirely different one'

/** The status of the reply, or undefined when there was none. */
async function resetAt(server: Server, token: string, word: string): Promise<number | undefined> {
  try {
    const init = { method: 'POST', headers: { 'content-type': 'application/json' } }
    const reply = await server.fetch('/api/v1/auth/password/reset', {
      ...init,
      body: JSON.stringify({ token, password: word })
    })
    await reply.text()
    return reply.status
  } catch {
    return undefined
  }
}

t.test('a link is used once, whichever processes are asked, and a reset that was acknowledged stays', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const { email } = acme.owner
  // no mail of this test is theirs to send
  const env = testEnvironment(app.database, { SMTP_URL: 'smtp://127.0.0.1:9' })

  await t.test('fifty at once', async (t) => {
    const token = await forgotToken(app, email)
    const servers = await Promise.all([startServer(t, env), startServer(t, env)])
    const statuses = await Promise.all(
      Array.from({ length: 50 }, (_, i) => resetAt(servers[i % 2] as Server, token, `${fresh} ${i}`))
    )
    t.equal(statuses.filter((status) => status === 204).length, 1)
    t.equal(statuses.filter((status) => status === 410).length, 49)
    t.equal((await login(app, email, `${fresh} ${statuses.indexOf(204)}`)).statusCode, 200)
    for (const { child, exited } of servers) {
      child.kill('SIGKILL')
      await exited
    }
  })
  for (const delay of [0, 60, 250]) {
    await t.test(`a process that is killed ${delay} ms after it was asked`, async (t) => {
      const word = `${fresh} after ${delay}`
      const token = await forgotToken(app, email)
      const server = await startServer(t, env)
      const asked = resetAt(server, token, word)
      await sleep(delay)
      server.child.kill('SIGKILL')
      const status = await asked
      await server.exited
      t.ok(status === 204 || status === undefined, String(status))
      const signedIn = (await login(app, email, word)).statusCode
      if (status === 204) t.equal(signedIn, 200)
      // whole or not at all: the token is as good as the password is old
      const again = await reset(app, token, word)
      t.equal(again.statusCode, signedIn === 200 ? 410 : 204)
      t.equal((await login(app, email, word)).statusCode, 200)
    })
  }
})

const medianOf = (times: number[]) => times.toSorted((a, b) => a - b)[Math.floor(times.length / 2)] as number

/** The probability, by the rank-sum test of Mann and Whitney, that two samples of one distribution differ as much. */
function rankSumProbability(one: number[], two: number[]): number {
  const all = [...one.map((time) => ({ time, mine: true })), ...two.map((time) => ({ time, mine: false }))]
  all.sort((a, b) => a.time - b.time)
  const ranks = all.reduce((sum, { mine }, index) => sum + (mine ? index + 1 : 0), 0)
  const u = ranks - (one.length * (one.length + 1)) / 2
  const mean = (one.length * two.length) / 2
  const deviation = Math.sqrt((one.length * two.length * (one.length + two.length + 1)) / 12)
  const z = Math.abs(u - mean) / deviation
  // the tail of the normal distribution (Abramowitz and Stegun, 26.2.17)
  const k = 1 / (1 + 0.2316419 * z)
  const density = Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI)
  const terms = [0.31938153, -0.356563782, 1.781477937, -1.821255978, 1.330274429]
  return 2 * density * terms.reduce((sum, term, power) => sum + term * k ** (power + 1), 0)
}

t.test('no time tells whether somebody has an address', async (t) => {
  const n = 400
  const app = await startApp(t)
  await allRows(
    app.database,
    `insert into users (id, email, name) select gen_random_uuid(), 'known-' || i || '@x.example', 'Somebody'
     from generate_series(1, ${4 * n}) i`
  )
  await forgot(app, 'warm@x.example')
  t.ok(rankSumProbability([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]) < 0.01, 'the measure would find a difference')
  let asked = 0
  const measure = async () => {
    const times = { known: [] as number[], 'never-': [] as number[] }
    for (let i = 0; i < n; i++) {
      asked++
      const order = ['known', 'never-'] as const
      for (const who of Math.random() < 0.5 ? order : order.toReversed()) {
        const startedAt = performance.now()
        const reply = await forgot(app, `${who === 'known' ? 'known-' : who}${asked}@x.example`)
        times[who].push(performance.now() - startedAt)
        if (reply.statusCode !== 202) throw new Error(reply.body)
      }
    }
    const difference = Math.abs(medianOf(times.known) - medianOf(times['never-']))
    return { difference, p: rankSumProbability(times.known, times['never-']) }
  }
  // equal samples differ by chance once in a hundred times
  let best = await measure()
  for (let i = 0; i < 3 && !(best.difference < 5 && best.p > 0.01); i++) best = await measure()
  t.comment(`medians differ by ${best.difference.toFixed(2)} ms, p = ${best.p.toFixed(3)}`)
  t.ok(best.difference < 5)
  t.ok(best.p > 0.01)
})

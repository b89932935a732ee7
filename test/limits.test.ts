import { once } from 'node:events'
import { readdirSync, utimesSync } from 'node:fs'
import { type AddressInfo, connect } from 'node:net'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyRequest } from 'fastify'
import { sql } from 'kysely'
import t from 'tap'
import * as gate from '../db/gate/gate.ts'
import * as pipeline from '../db/gate/pipeline.ts'
import * as replica from '../db/gate/replica.ts'
import { startTimeoutMs } from '../db/gate/start-up.ts'
import { statement } from '../db/gate/statement.ts'
import * as keys from '../plugins/auth/api-keys.ts'
import * as breaches from '../plugins/auth/breached-passwords.ts'
import * as revocations from '../plugins/auth/revocations.ts'
import { maxStreams } from '../plugins/events/event-streams.ts'
import * as uploads from '../plugins/files/objects.ts'
import { maxNotices } from '../plugins/infrastructure/account-mails.ts'
import * as pool from '../plugins/infrastructure/database.ts'
import * as redis from '../plugins/infrastructure/redis.ts'
import { demandsPerDay } from '../plugins/limits/attempts.ts'
import * as requests from '../plugins/limits/rates.ts'
import * as tenants from '../plugins/tenancy/tenants.ts'
import { maxKeys as maxApiKeys } from '../routes/api-keys/queries.ts'
import { maxCidrs, overlapSeconds } from '../routes/api-keys/schemas.ts'
import * as resumable from '../routes/files/appending.ts'
import * as direct from '../routes/files/direct-uploads.ts'
import { quotaDivisor } from '../routes/files/receiving.ts'
import { maxHeaderSize } from '../src/app.ts'
import { keyTokenSeconds } from '../src/auth/api-keys/key-reach.ts'
import { lookupTimeoutMs } from '../src/auth/breached-passwords.ts'
import * as hasher from '../src/auth/hasher.ts'
import { createPasswords, waitTimeoutMs } from '../src/auth/passwords.ts'
import { settings } from '../src/config/settings.ts'
import { stalledMs } from '../src/events/event-stream.ts'
import { depths, imageLimits, typeLimits } from '../src/files/decoders.ts'
import { linkSeconds } from '../src/files/file-links.ts'
import { maxPixels, maxSide } from '../src/files/image-decoding.ts'
import { maxImageBytes } from '../src/files/images.ts'
import { minimumRate, preemption } from '../src/files/minimum-rate.ts'
import { createDiskStore } from '../src/files/store/disk.ts'
import { storeTimeoutMs } from '../src/files/store/object-store.ts'
import { assemblyTimeoutMs } from '../src/files/store/s3.ts'
import { sampleIntervalMs } from '../src/files/upload-slots.ts'
import { catalogue } from '../src/http/problems.ts'
import { createKeyRing } from '../src/keys.ts'
import { crashTimeoutMs } from '../src/processes/serving.ts'
import * as supervisor from '../src/processes/supervisor.ts'
import { form } from './forms.ts'
import { createTenant, createTestDatabase, eventually, post, send, startApp } from './harness.ts'
import { read, rowAbout, rows, sizes, times } from './limit-rows.ts'
import { exchange, listen } from './requests.ts'

// bounded in time: how long one may wait

/*
 * What docs/operations.md says about limits and time-outs is what the product does. Every row of its table is read here.
 * test/docs.test.ts shows that every limit in the sources has a row.
 */

t.test('the limits of a request', async (t) => {
  const app = await startApp(t)
  const port = await listen(app)
  const headers = rowAbout('headers of a request')
  const get = (more: string) =>
    `GET /api/v1/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n${more}\r\n`

  t.test('how long its headers may take', (t) => {
    t.strictSame(times(headers.value), [app.server.headersTimeout])
    const { connectionsCheckingInterval } = app.server as unknown as { connectionsCheckingInterval: number }
    t.strictSame(times(headers.what), [connectionsCheckingInterval])
    t.end()
  })
  t.test('how large its headers may be', async (t) => {
    const [limit = 0] = sizes(headers.value)
    t.equal(limit, maxHeaderSize)
    const line = (bytes: number) => `X-A: ${'a'.repeat(bytes)}\r\n`
    t.match((await exchange(port, get(line(limit - 1024)))).text, /^HTTP\/1\.1 200 /)
    t.match((await exchange(port, get(line(limit + 1)))).text, /^HTTP\/1\.1 431 /)
    t.match(headers.over, '408, 431')
  })
  t.test('how long all of it may take', (t) => {
    t.strictSame(times(rowAbout('a body').value), [app.bodyTimeoutMs])
    t.end()
  })
  t.test('how long its connection may be idle', async (t) => {
    t.strictSame(times(rowAbout('an idle connection').value), [app.server.keepAliveTimeout])
    // the same at a hundredth of the time
    Object.assign(app.server, { keepAliveTimeout: app.server.keepAliveTimeout / 100 })
    const { text, ms } = await exchange(port, get('').replace('Connection: close\r\n', ''))
    t.match(text, /^HTTP\/1\.1 200 /)
    t.ok(ms >= app.server.keepAliveTimeout, `closed after ${ms} ms`)
  })
  t.test('how long nothing may move on its connection', (t) => {
    t.strictSame(times(rowAbout('a connection on which nothing moves').value), [app.server.timeout])
    t.end()
  })
  t.test('how many requests may wait for their answers on one connection', async (t) => {
    const most = Number(rowAbout('requests on one connection').value)
    const { port } = app.server.address() as { port: number }
    /** Sends so many requests at once on one connection. Resolves to the number of answers before it closed. */
    const answersTo = async (count: number) => {
      const socket = connect(port, '127.0.0.1')
      let text = ''
      socket.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk
      })
      socket.on('error', () => {})
      const one = 'GET /api/v1/health/live HTTP/1.1\r\nHost: localhost\r\n'
      const last = `${one}Connection: close\r\n\r\n`
      socket.write(`${one}\r\n`.repeat(count - 1) + last)
      await new Promise((done) => socket.once('close', done))
      return text.split('HTTP/1.1 200').length - 1
    }
    t.equal(await answersTo(most), most)
    t.ok((await answersTo(most * 10)) < most * 10)
  })
  t.test('how large a JSON body may be', async (t) => {
    const [limit = 0] = sizes(rowAbout('a JSON body').value)
    t.equal(limit, app.initialConfig.bodyLimit)
    const body = (bytes: number) => ({
      ...post('/auth/login', `{"email":"${'x'.repeat(bytes - '{"email":""}'.length)}"}`),
      headers: { 'content-type': 'application/json' }
    })
    t.equal((await send(app, 'localhost', body(limit))).statusCode, 400)
    t.equal((await send(app, 'localhost', body(limit + 1))).statusCode, 413)
  })
})

t.test('the limits of the database', async (t) => {
  const database = await createTestDatabase(t)
  const app = await startApp(t, { DATABASE_POOL: '1' }, database)
  const acme = await createTenant(app, 'acme')
  const me = await acme.send('/api/v1/users/me')
  const scope = { tenant_id: acme.id, user_id: me.json().id, request: '' }

  t.test('how long one waits for a connection of the pool', async (t) => {
    const { value, over } = rowAbout('waiting for a pooled connection')
    const [limit = 0] = times(value)
    t.equal(limit, pool.acquireTimeoutMs)
    const start = rowAbout('a database that is not there yet when a process starts')
    t.strictSame(times(start.value), [startTimeoutMs])
    // the only connection is held for the whole time-out
    const held = app.gate.transaction(scope, () => sleep(limit + 500))
    const startedAt = Date.now()
    const reply = await acme.send({ method: 'PATCH', url: '/api/v1/users/me', payload: { name: 'Ada' } })
    const ms = Date.now() - startedAt
    await held
    t.match(reply.json(), { status: 503, code: 'overloaded' })
    t.match(over, '503 `overloaded`')
    t.ok(ms >= limit - 50 && ms < limit + 2000, `refused after ${ms} ms`)
  })
  t.test('how long a statement may take, and wait for a lock', async (t) => {
    const statementTimeOuts = times(rowAbout('a statement on the pool; on a pipelined connection').value)
    const lockTimeOuts = times(rowAbout('waiting for a row lock').value)
    const settingsText = (name: string) => sql.raw(`select setting as value from pg_settings where name = '${name}'`)
    const inForce = async (name: string) => {
      const ask = (slow: boolean) =>
        statement(`test_${name}_${slow}`, () => sql<{ value: string }>`${settingsText(name)}`, { slow })
      const answers = await Promise.all([true, false].map((slow) => app.gate.query(scope, ask(slow), {})))
      return answers.map(([row]) => Number(row?.value))
    }
    t.strictSame(await inForce('statement_timeout'), statementTimeOuts)
    t.strictSame(await inForce('lock_timeout'), lockTimeOuts)
    const idle = times(rowAbout('a transaction in which nothing happens').value)
    const [inTransaction] = await app.gate.transaction(
      scope,
      async (trx) =>
        (await sql<{ value: string }>`${settingsText('idle_in_transaction_session_timeout')}`.execute(trx)).rows
    )
    t.strictSame(idle, [Number(inTransaction?.value)])
  })
  t.test('how long connecting may take, and what nobody uses is kept', async (t) => {
    t.strictSame(times(rowAbout('connecting to the database').value), [pipeline.connectTimeoutMs])
    const unopened = rowAbout('a pipelined connection that could not be opened')
    t.strictSame(times(unopened.value), [pipeline.reconnectDelayMs])
    const idle = pool.idleTimeoutMs
    t.strictSame(times(rowAbout('a pooled connection that nobody uses').value), [idle])
  })
  t.test('how many queries are under way at once', async (t) => {
    const { value } = rowAbout('connections of the pool; queries on and before a pipelined one')
    const [, pool, inFlight] = /^`(\w+)`; ([\d,]+)$/.exec(value) ?? []
    t.equal(pool, settings.databasePool.name)
    t.equal(Number(inFlight?.replace(',', '')), pipeline.maxInFlight)
    const pause = rowAbout('pipelined connections that take nothing of what waits')
    t.strictSame(times(pause.value), [pipeline.maxPauseMs])
  })
  t.test('how long a database may say nothing', async (t) => {
    const { value } = rowAbout('a database that says nothing')
    t.strictSame(times(value), [pool.queryTimeoutMs, pipeline.silenceLimitMs])
  })
  t.test('how far behind a replica may be', async (t) => {
    t.strictSame(times(rowAbout('a replica is behind').value), [replica.staleAfterMs])
  })
  t.test('how old what is known of revocations may be', async (t) => {
    t.strictSame(times(rowAbout('revocations could not be read').value), [revocations.staleAfterMs])
  })
})

t.test('how many passwords are hashed at once, and wait', async (t) => {
  const { value, over } = rowAbout('password hashes at once; waiting; how long')
  const [, depth, seconds] = /^one a core; (\d+); (\d+) s$/.exec(value) ?? []
  t.equal(Number(seconds) * 1000, waitTimeoutMs)
  const room = availableParallelism() + Number(depth)
  const passwords = await createPasswords(createKeyRing(['a pepper of the tests'], 'pepper'))
  const outcomes = await Promise.allSettled(
    Array.from({ length: room + 3 }, () => passwords.verify('a password', undefined))
  )
  const refused = outcomes.filter((outcome) => outcome.status === 'rejected')
  t.equal(refused.length, 3)
  for (const { reason } of refused) t.match(reason, { kind: { code: 'overloaded', status: 503 } })
  t.match(over, '503 `overloaded`')
})

t.test('how often anybody may ask is a setting', async (t) => {
  const names = (start: string) => [...rowAbout(start).value.matchAll(/`(\w+)`/g)].map(([, name]) => name)
  t.strictSame(names('requests of a person; of an agency'), [settings.rateLimit.name, settings.rateLimitTenant.name])
  t.strictSame(names('requests of an API key'), [settings.rateLimitKey.name])
  t.strictSame(names('requests without a good token'), [settings.rateLimit.name])
  t.strictSame(names('attempts at sign-in'), [settings.rateLimitAuth.name])
  const uploads = rowAbout('uploads that one person begins').value
  t.match(uploads, `12 times \`${settings.rateLimitAuth.name}\``)
  const limited = await startApp(t, { RATE_LIMIT_AUTH: '1/1m' })
  const { send } = await createTenant(limited, 'limited')
  const upload = { name: 'a.txt', content_type: 'text/plain', size: 1, sha256: '0'.repeat(64) }
  const statuses = []
  for (let i = 0; i < 13; i++) statuses.push((await send(post('/files/uploads', upload))).statusCode)
  t.strictSame(statuses, [...Array.from({ length: 12 }, () => 201), 429])
  t.strictSame(names('agencies that one person makes'), [settings.tenantsPerDay.name])
  t.strictSame(
    names('mails that a person causes'),
    [settings.rateLimitMail, settings.rateLimitMailUnverified, settings.rateLimitMailTo].map(({ name }) => name)
  )
  for (const { what, over } of rows.filter(({ value }) => value.includes('RATE_LIMIT'))) {
    t.equal(over, '429 `rate_limited`', what)
  }
})

t.test('how many notices a person gets', async (t) => {
  t.match(rowAbout('notices about an account'), { value: String(maxNotices), over: 'not sent' })
  const demands = rowAbout('demands of a second factor')
  t.match(demands, { value: String(demandsPerDay), over: '429 `rate_limited`' })
  t.ok(demandsPerDay * 2 <= maxNotices, 'each may begin and end, and is told')
})

t.test('streams of events', (t) => {
  t.match(rowAbout('streams of events that a process has open'), {
    value: `\`EVENT_STREAMS\`; ${maxStreams.person}; ${maxStreams.agency.toLocaleString('en')}`,
    over: '503 `overloaded`; 429 `rate_limited`'
  })
  t.strictSame(times(rowAbout('a stream of events whose reader takes nothing').value), [stalledMs])
  t.end()
})

t.test('the share of one agency', async (t) => {
  t.test('of the requests under way', async (t) => {
    const { value, over } = rowAbout('requests of one person, or of one agency, under way')
    t.match(over, '503 `overloaded`')
    const limit = Number(value)
    const app = await startApp(t)
    const [acme, rival] = await Promise.all([createTenant(app, 'acme'), createTenant(app, 'rival')])
    // this lock makes every read wait
    let open = () => {}
    const door = new Promise<void>((done) => {
      open = done
    })
    const { query } = app.gate
    app.gate.query = async (scope, statement, values) => {
      if (statement.name === 'read_user') await door
      return query(scope, statement, values)
    }
    const held = Array.from({ length: limit }, () => acme.send('/api/v1/users/me'))
    await sleep(200)
    const reply = await acme.send('/api/v1/users/me')
    t.match(reply.json(), { status: 503, code: 'overloaded' })
    t.match(reply.headers['retry-after'], /^[1-9]\d*$/)
    const other = rival.send('/api/v1/users/me')
    open()
    t.equal((await other).statusCode, 200, 'another agency')
    t.strictSame([...new Set((await Promise.all(held)).map(({ statusCode }) => statusCode))], [200])
    t.equal((await acme.send('/api/v1/users/me')).statusCode, 200, 'when they are done')
  })
  t.test('of the requests under way, whose clients do not wait for the end', async (t) => {
    const limit = Number(rowAbout('requests of one person, or of one agency, under way').value)
    const app = await startApp(t)
    const acme = await createTenant(app, 'acme')
    await app.listen({ port: 0, host: '127.0.0.1' })
    const { port } = app.server.address() as AddressInfo
    const { query } = app.gate
    app.gate.query = async (scope, statement, values) => {
      if (statement.name === 'read_user') await sleep(100)
      return query(scope, statement, values)
    }
    const request = `GET /api/v1/users/me HTTP/1.1\r\nHost: ${acme.host}\r\nAuthorization: Bearer ${acme.owner.tokens.access_token}\r\n\r\n`
    let connections = 0
    // alone, and several behind each other
    for (const pipelined of [1, 8]) {
      for (let sent = 0; sent < 2 * limit; sent += pipelined) {
        const socket = connect(port, '127.0.0.1').on('error', () => {})
        socket.write(request.repeat(pipelined), () => setTimeout(() => socket.destroy(), 20))
        if (++connections % 16 === 0) await once(socket, 'close')
      }
      const served = async () => (await acme.send('/api/v1/users/me')).statusCode === 200
      await t.resolves(eventually(served), `${pipelined} on a connection`)
    }
  })
  t.test('of the connections', async (t) => {
    t.equal(rowAbout('connections of the pool that one person, or one agency,').value, 'half of them')
    const { value, over } = rowAbout('queries of one person, or of one agency, that wait')
    const [, depth] = /^(\d+);/.exec(value) ?? []
    t.equal(Number(depth), gate.maxWaitingPerKey)
    const [timeoutMs = 0] = times(value)
    t.equal(timeoutMs, gate.semaphoreTimeoutMs)
    t.match(over, '503 `overloaded`')
    const app = await startApp(t, { DATABASE_POOL: '4' })
    const acme = await createTenant(app, 'acme')
    const scope = { tenant_id: acme.id, user_id: acme.owner.id, request: '' }
    const all = await Promise.allSettled(
      Array.from({ length: 2 + Number(depth) + 5 }, () => app.gate.transaction(scope, () => sleep(timeoutMs + 500)))
    )
    const refused = all.filter((one) => one.status === 'rejected')
    t.equal(all.length - refused.length, 2, 'half of the pool works')
    for (const { reason } of refused.slice(-1)) t.match(reason.message, 'share')
  })
})

t.test('how much a process remembers', (t) => {
  const numbers = (start: string) =>
    [...rowAbout(start).value.matchAll(/[\d,]+/g)].map(([number]) => Number(number.replaceAll(',', '')))
  t.strictSame(numbers('agencies that a process remembers'), [tenants.maxTenants, tenants.maxUnknown])
  t.strictSame(numbers('people, and agencies, whose requests a process counts'), [
    requests.maxSenders,
    requests.maxKeys
  ])
  const remembered = rowAbout('API keys that a process remembers').value
  t.strictSame(numbers('API keys that a process remembers'), [keys.rememberedKeys, 15, keys.refusedKeys, 10])
  t.strictSame(times(remembered), [keyTokenSeconds * 1000, keys.refusalMs])
  const week = overlapSeconds.max / 86_400
  t.strictSame(numbers('API keys of an agency'), [maxApiKeys, maxCidrs, week])
  t.end()
})

t.test('how long the service of breached passwords may take', (t) => {
  const { what, value } = rowAbout('the service of breached passwords')
  t.match(what, 'three failures')
  t.equal(breaches.maxFailures, 3)
  t.strictSame(times(value), [lookupTimeoutMs, breaches.cooldownMs])
  t.end()
})

t.test('how long Redis may take', (t) => {
  const { what, value } = rowAbout('Redis: connecting')
  t.match(what, 'three failures')
  t.equal(redis.maxFailures, 3)
  t.strictSame(times(value), [redis.connectTimeoutMs, redis.commandTimeoutMs, redis.cooldownMs])
  t.end()
})

t.test('the limits of files', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const port = await listen(app)
  t.test('how many uploads are taken at once, and wait', async (t) => {
    const [, share = 0] = rowAbout('uploads at once; of one person or agency').value.split('; ').map(Number)
    t.equal(rowAbout('uploads at once').value, `${uploads.maxUploads}; ${uploads.maxPerOwner}`)
    const { value, over } = rowAbout('uploads that wait')
    const [, all, depth] = /^(\d+); (\d+); /.exec(value) ?? []
    t.strictSame([Number(all), Number(depth)], [uploads.maxWaiting, uploads.maxWaitingPerOwner])
    t.strictSame(times(value), [uploads.ownerTimeoutMs, uploads.slotTimeoutMs])
    let release = () => {}
    const held = new Promise<void>((resolve) => {
      release = resolve
    })
    const holder = { user_id: null, tenant_id: acme.id }
    const whole = { raw: { complete: true } } as FastifyRequest
    const running = Array.from({ length: share + Number(depth) }, () => app.withUploadSlot(whole, holder, () => held))
    const one = form([{ name: 'file', filename: 'a.txt', content: 'hello' }])
    const upload = { method: 'POST', url: '/api/v1/files', ...one } as const
    t.match((await acme.send(upload)).json(), { status: 503, code: 'overloaded' })
    t.match(over, '503 `overloaded`')
    const rival = await createTenant(app, 'rival')
    t.equal((await rival.send(upload)).statusCode, 201, 'another agency has its places')
    release()
    await Promise.all(running)
    t.equal((await acme.send(upload)).statusCode, 201)
  })
  t.test('how long a store may say nothing', (t) => {
    t.strictSame(times(rowAbout('a store of files that gives no sign').value), [storeTimeoutMs])
    const assembly = assemblyTimeoutMs
    t.strictSame(times(rowAbout('a store that puts an object together').value), [assembly])
    t.ok(assembly < app.server.timeout, 'while its client still waits')
    t.end()
  })
  t.test('how long nothing of an upload may come', async (t) => {
    t.strictSame(times(rowAbout('an upload of which nothing comes').value), [app.server.timeout])
    // the same at a hundredth of the time
    const { timeout } = app.server
    app.server.timeout = timeout / 100
    const opening = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhello'
    const { ms } = await exchange(
      port,
      `POST /api/v1/files HTTP/1.1\r\nHost: ${acme.host}\r\nAuthorization: Bearer ${acme.owner.tokens.access_token}\r\n` +
        `Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n${opening}`
    )
    app.server.timeout = timeout
    t.ok(ms >= timeout / 100 && ms < 9000, `closed after ${ms} ms`)
    t.equal((await acme.send('/api/v1/files')).json().data.length, 1)
  })
  t.test('how long an unfinished upload is kept, and how much room such hold', (t) => {
    t.strictSame(times(rowAbout('a resumable upload without a new byte').value), [
      resumable.idleTimeoutSeconds * 1000,
      resumable.lifeSeconds * 1000
    ])
    t.strictSame(times(rowAbout('a direct upload that is not completed').value), [
      direct.completionTimeoutSeconds * 1000
    ])
    t.match(rowAbout('room that the unfinished uploads').value, 'a quarter')
    t.equal(quotaDivisor, 4)
    t.end()
  })
  t.test('how slowly an upload may come', (t) => {
    const { value } = rowAbout('an upload that trickles')
    t.strictSame(sizes(value), [minimumRate.bytes_per_second])
    t.strictSame(times(value), [minimumRate.grace_ms])
    const slow = rowAbout('a slow upload, while somebody else waits')
    t.strictSame(sizes(slow.value), [preemption.bytes_per_second])
    const looks = preemption.samples * sampleIntervalMs
    t.strictSame(times(slow.value), [looks])
    t.end()
  })
  t.test('how long a link is good', async (t) => {
    t.strictSame(times(rowAbout('a link to a file, or to send one').value), [linkSeconds * 1000])
    const [file] = (await acme.send('/api/v1/files')).json().data
    const link = { tenant_id: acme.id, id: file.id, expires_at: new Date(Date.now() + 5000) }
    const get = (expires_at: Date) =>
      acme.anonymous(`/api/v1/files/links/${app.fileLinks.issue('read', { ...link, expires_at })}/content`)
    t.equal((await get(link.expires_at)).statusCode, 200)
    t.equal((await get(new Date(Date.now() - 1))).statusCode, 404)
    const issued = new Date((await acme.send(`/api/v1/files/${file.id}/url`)).json().expires_at)
    t.ok(Math.abs(issued.getTime() - Date.now() - linkSeconds * 1000) < 10_000)
  })
  t.test('how long what a killed process left lies there', async (t) => {
    const [, days] = /^(\d+) days$/.exec(rowAbout('parts that a killed process left').value) ?? []
    const folder = t.testdir({ unfinished: { fresh: '', old: '' } })
    for (const [name, hours] of Object.entries({ fresh: -1, old: 1 })) {
      const at = Date.now() / 1000 - (Number(days) * 24 + hours) * 3600
      utimesSync(join(folder, 'unfinished', name), at, at)
    }
    await createDiskStore(folder).dropStaleParts()
    t.strictSame(readdirSync(join(folder, 'unfinished')), ['fresh'])
  })
})

t.test('how long a shutdown may take is a setting', (t) => {
  t.equal(rowAbout('a shutdown').value, `\`${settings.shutdownTimeout.name}\``)
  t.end()
})

t.test('how long the processes wait for each other', (t) => {
  const fault = rowAbout('what is under way after a fault')
  t.strictSame(times(fault.value), [crashTimeoutMs])
  const answer = rowAbout("a worker's answer to the internal listener")
  t.strictSame(times(answer.value), [supervisor.reportTimeoutMs])
  const hash = rowAbout('the start of the process that hashes passwords')
  t.strictSame(times(hash.value), [hasher.answerTimeoutMs])
  t.strictSame(times(hash.over), [hasher.restartDelayMs])
  t.end()
})

t.test('what bytes of strangers may take to read', (t) => {
  const numbers = (text: string) => (text.match(/[\d,]+/g) ?? []).map((each) => Number(each.replaceAll(',', '')))
  const used = ({ memory, cpuMs }: typeof imageLimits) => [memory / 2 ** 20, cpuMs / 1000]
  t.strictSame(numbers(rowAbout('an image: bytes').value), [maxImageBytes / 2 ** 20, maxPixels / 1_000_000, maxSide])
  t.strictSame(numbers(rowAbout('decoding an image').value), used(imageLimits))
  t.strictSame(numbers(rowAbout('finding the type of a file').value), used(typeLimits))
  t.strictSame(numbers(rowAbout('images that wait').value), [depths.images, depths.types])
  t.strictSame(times(rowAbout("an image's process without an answer").value), [imageLimits.wallMs, typeLimits.wallMs])
  t.end()
})

t.test('every row is read here, and names codes that there are', (t) => {
  t.ok(rows.length > 10)
  t.strictSame(
    rows.map(({ what }) => what).filter((what) => !read.has(what)),
    []
  )
  for (const { what, over } of rows) {
    for (const [, status, code] of over.matchAll(/(\d{3}) `(\w+)`/g)) {
      t.equal(catalogue.get(code as string)?.status, Number(status), `${what}: ${code}`)
    }
  }
  t.end()
})

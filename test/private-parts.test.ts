import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import { connect, createServer, Socket } from 'node:net'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { Client } from 'minio'
import pg from 'pg'
import t, { type Test } from 'tap'
import { Connection, PooledConnection } from '../db/gate/connection.ts'
import { ConnectFailure, classifyFailure } from '../db/gate/failures.ts'
import { serializeValue } from '../db/gate/gate-query.ts'
import { Parser, type PgConnection, serialize, socketOf } from '../db/gate/pg-internals.ts'
import { root } from './harness.ts'

/*
 * The parts of packages and of Node that the product uses although their documentation does not promise them:
 * docs/architecture.md lists them. A test here fails when an update moves one of them. It also fails when an update makes
 * a package do by itself what the product does by hand.
 */

function message(type: string, body: string | Buffer = ''): Buffer {
  const bytes = Buffer.from(body)
  const head = Buffer.from(`${type}0000`)
  head.writeUInt32BE(bytes.length + 4, 1)
  return Buffer.concat([head, bytes])
}

const readyForQuery = message('Z', 'I')
const commandComplete = message('C', 'SELECT 1\0')
const undefinedTable = message('E', 'SERROR\0C42P01\0Mno such table\0\0')
/** One column `a` of type int4, as text. */
const rowDescription = message(
  'T',
  Buffer.concat([Buffer.from([0, 1]), Buffer.from('a\0'), Buffer.from('000000000000000000170004ffffffff0000', 'hex')])
)
const dataRow = message('D', Buffer.concat([Buffer.from([0, 1, 0, 0, 0, 2]), Buffer.from('42')]))

/** A server that accepts every login and then answers only what the test writes. */
async function startServer(t: Test, { login = true } = {}) {
  const sockets: Socket[] = []
  const received: Buffer[] = []
  const server = createServer((socket) => {
    sockets.push(socket)
    socket.on('error', () => {})
    socket.once('data', () => {
      if (login) socket.write(Buffer.concat([message('R', Buffer.alloc(4)), readyForQuery]))
      socket.on('data', (chunk) => received.push(chunk))
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  const { port } = server.address() as { port: number }
  return {
    connectionString: `postgres://somebody:secret@127.0.0.1:${port}/nothing`,
    write: (...messages: Buffer[]) => sockets.at(-1)?.write(Buffer.concat(messages)),
    close: () => sockets.at(-1)?.end(),
    /** Waits until the client has sent this much, and takes it. */
    async take(length: number): Promise<Buffer> {
      while (received.reduce((sum, { length }) => sum + length, 0) < length) await new Promise(setImmediate)
      return Buffer.concat(received.splice(0))
    }
  }
}

async function open<C extends pg.Client>(t: Test, client: C): Promise<C> {
  client.on('error', () => {})
  await client.connect()
  t.teardown(() => socketOf(client).destroy())
  return client
}

/** A query object as db/gate/gate-query.ts makes one. Records the calls of pg. */
function recordingQuery(submit: (connection: PgConnection) => void) {
  const calls: [string, unknown?][] = []
  const query = {
    name: 'named',
    text: 'select 42 as a',
    callback: () => calls.push(['callback']),
    submit(connection: PgConnection) {
      submit(connection)
      return null
    },
    handleRowDescription: ({ fields }: { fields: pg.FieldDef[] }) =>
      calls.push(['rowDescription', fields.map(({ name, dataTypeID }) => ({ name, dataTypeID }))]),
    handleDataRow: ({ fields }: { fields: unknown }) => calls.push(['dataRow', fields]),
    handleCommandComplete: () => calls.push(['commandComplete']),
    handleError: (err: Error & { code?: string }) => calls.push(['error', err.code ?? err.message]),
    handleReadyForQuery: () => calls.push(['readyForQuery'])
  }
  return { query: query as unknown as pg.Submittable, calls }
}

/** Unlike `once`, it does not reject when the client emits an error first. */
const endOf = (client: pg.Client) => new Promise<void>((resolve) => client.once('end', resolve))

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise(setImmediate)
}

t.test('pg hands a query object its connection, and then the messages', async (t) => {
  const server = await startServer(t)
  const client = await open(t, new pg.Client(server))
  const sent = [
    serialize.parse({ name: 'named', text: 'select 42 as a', types: [] }),
    serialize.bind({ statement: 'named', values: ['text', null, Buffer.from([0, 255])] }),
    serialize.describe({ type: 'P' }),
    serialize.execute({}),
    serialize.sync()
  ]
  let given: PgConnection | undefined
  const { query, calls } = recordingQuery((connection) => {
    given = connection
    connection.stream.cork()
    connection.parse({ name: 'named', text: 'select 42 as a' })
    connection.bind({ statement: 'named', values: ['text', null, Buffer.from([0, 255])] })
    connection.describe({ type: 'P' })
    connection.execute({})
    connection.sync()
    connection.stream.uncork()
  })
  client.query(query)
  const expected = Buffer.concat(sent)
  t.ok((await server.take(expected.length)).equals(expected), 'its connection writes these messages')

  server.write(message('1'), message('2'), rowDescription, dataRow, commandComplete, readyForQuery)
  await until(() => calls.at(-1)?.[0] === 'readyForQuery')
  t.strictSame(calls, [
    ['rowDescription', [{ name: 'a', dataTypeID: pg.types.builtins.INT4 }]],
    ['dataRow', ['42']],
    ['commandComplete'],
    ['readyForQuery']
  ])
  t.strictSame({ ...given?.parsedStatements }, { named: 'select 42 as a' })

  const failing = recordingQuery((connection) => connection.sync())
  client.query(failing.query)
  server.write(undefinedTable, readyForQuery)
  const next = recordingQuery((connection) => connection.sync())
  await until(() => failing.calls.length > 0)
  client.query(next.query)
  server.write(readyForQuery)
  await until(() => next.calls.length > 0)
  t.strictSame(failing.calls, [['error', '42P01']], 'after an error it hears no more')
  t.strictSame(next.calls, [['readyForQuery']])
})

t.test('pg replaces the callback of a query object that has a timeout, and calls it when the time is up', async (t) => {
  const server = await startServer(t)
  const client = await open(t, new pg.Client({ ...server, query_timeout: 20 }))
  const { query, calls } = recordingQuery((connection) => connection.sync())
  client.query(query)
  await until(() => calls.length === 2)
  t.strictSame(calls, [['callback'], ['error', 'Query read timeout']])
})

t.test('the socket of a client can be taken over, and pg still notices its end', async (t) => {
  const server = await startServer(t)
  const client = await open(t, new pg.Client(server))
  const stream = socketOf(client)
  t.ok(stream instanceof Socket)
  t.equal(stream.listenerCount('data'), 1, 'the parser of pg and nothing else')
  stream.removeAllListeners('data')
  const taken: Buffer[] = []
  stream.on('data', (chunk) => taken.push(chunk))
  // pg would take a row that belongs to no query for an error of the connection
  server.write(dataRow, readyForQuery)
  await until(() => Buffer.concat(taken).length === dataRow.length + readyForQuery.length)

  const errors: string[] = []
  client.on('error', ({ message }) => errors.push(message))
  const ended = endOf(client)
  server.close()
  await ended
  t.strictSame(errors, ['Connection terminated unexpectedly'])

  t.test('and still says goodbye', async (t) => {
    const client = await open(t, new pg.Client(server))
    socketOf(client).removeAllListeners('data')
    const ended = endOf(client)
    client.end()
    t.ok((await server.take(5)).equals(serialize.end()))
    server.close()
    await ended
  })
  t.test('and can be destroyed', async (t) => {
    const client = await open(t, new pg.Client(server))
    const ended = endOf(client)
    socketOf(client).destroy()
    await ended
  })
})

t.test('the parser of pg-protocol reads single messages', async (t) => {
  const parser = new Parser()
  const read = (bytes: Buffer) => {
    let found: unknown
    parser.parse(bytes, (parsed) => {
      found = parsed
    })
    return found as object
  }
  t.match(read(undefinedTable), { code: '42P01', message: 'no such table' })
  t.ok(read(undefinedTable) instanceof Error)
  t.match(read(rowDescription), { fields: [{ name: 'a', dataTypeID: pg.types.builtins.INT4 }] })
})

t.test('pg serializes values as text, bytes or null', async (t) => {
  t.equal(serializeValue(42), '42')
  t.equal(serializeValue(true), 'true')
  t.equal(serializeValue(['a', null]), '{"a",NULL}')
  t.equal(serializeValue({ a: 1 }), '{"a":1}')
  t.equal(serializeValue(null), null)
  t.equal(serializeValue(undefined), null)
  t.equal(serializeValue({ toJSON: () => undefined }), null)
  t.ok((serializeValue(Buffer.from([0, 255])) as Buffer).equals(Buffer.from([0, 255])))
})

t.test('the messages of pg by which a lost connection is recognized', async (t) => {
  const failureOf = async (work: Promise<unknown>) => {
    const err = (await work.then(
      () => new Error('it did not fail'),
      (err) => err
    )) as Error
    return [err.message, classifyFailure(err)]
  }
  const server = await startServer(t)
  const silent = await startServer(t, { login: false })

  t.test('while it is opened', async (t) => {
    const late = new Connection({ ...silent, connectionTimeoutMillis: 20 })
    t.strictSame(await failureOf(late.connect()), ['timeout expired', 'connection'])
    const bare = new pg.Client({ ...silent, connectionTimeoutMillis: 20 })
    await t.rejects(bare.connect(), { message: 'timeout expired' })
    // the pool opens by a callback, which Connection wraps
    const pool = new pg.Pool({ ...silent, connectionTimeoutMillis: 20, Client: Connection })
    const [text, failure] = await failureOf(pool.connect())
    t.match(text, /^Connection terminated due to connection timeout/)
    t.equal(failure, 'connection')
    await pool.end()
    const refused = new pg.Pool({ connectionString: 'postgres://a@127.0.0.1:1/a', Client: Connection })
    t.ok((await refused.connect().catch((err) => err)) instanceof ConnectFailure)
    t.strictSame(await failureOf(refused.end().then(() => refused.connect())), [
      'Cannot use a pool after calling end on the pool',
      'connection'
    ])
  })
  t.test('while all connections are taken', async (t) => {
    // long enough for the first connection on a busy machine
    const pool = new pg.Pool({ ...server, max: 1, connectionTimeoutMillis: 1000 })
    const taken = await pool.connect()
    t.strictSame(await failureOf(pool.connect()), ['timeout exceeded when trying to connect', 'overloaded'])
    taken.release(true)
    await pool.end()
  })
  t.test('while it is used', async (t) => {
    const client = await open(t, new pg.Client(server))
    const asked = failureOf(client.query('select'))
    await server.take(1)
    server.close()
    t.strictSame(await asked, ['Connection terminated unexpectedly', 'connection'])
    t.strictSame(await failureOf(client.query('select')), [
      'Client has encountered a connection error and is not queryable',
      'connection'
    ])
    const ending = await open(t, new pg.Client(server))
    const ended = ending.end()
    t.strictSame(await failureOf(ending.query('select')), ['Client was closed and is not queryable', 'connection'])
    server.close()
    await ended
  })
  t.test('after a query timeout, which closes the socket', async (t) => {
    const client = await open(t, new PooledConnection({ ...server, query_timeout: 20 }))
    t.strictSame(await failureOf(client.query('select')), ['Query read timeout', 'connection'])
    await until(() => socketOf(client).destroyed)
  })
})

t.test('the pipeline of pg', async (t) => {
  const server = await startServer(t)
  const client = await open(t, new pg.Client({ ...server, pipeline: true }))

  t.test('refuses query objects such as those of the gate', async (t) => {
    const { query, calls } = recordingQuery(() => t.fail('it was sent'))
    client.query(query)
    await until(() => calls.length > 0)
    t.match(calls, [['error', /not supported in pipeline mode/]])
  })
  t.test('sends a Sync with every query, so that no two share a transaction', async (t) => {
    for (const name of ['settings', 'statement']) client.query({ name, text: 'select' }).catch(() => {})
    const bytes = await server.take(2 * serialize.sync().length)
    t.equal(bytes.toString('latin1').split(serialize.sync().toString('latin1')).length - 1, 2)
  })
})

t.test('a socket of a Node server knows the reply that it owes', async (t) => {
  type Owing = Socket & { _httpMessage?: (ServerResponse & { req: IncomingMessage }) | null }
  const seen: unknown[] = []
  const state = ({ _httpMessage: reply }: Owing) =>
    reply && [reply.headersSent, reply.req.complete, reply.writableEnded, reply.writableFinished]
  let owing: Owing | undefined
  const server = http.createServer(async (request, reply) => {
    const socket = request.socket as Owing
    owing = socket
    t.equal(socket._httpMessage, reply)
    seen.push(state(socket))
    for await (const _ of request);
    seen.push(state(socket))
    reply.flushHeaders()
    seen.push(state(socket))
    // more than the buffers of a connection hold
    reply.end(Buffer.alloc(32 * 1024 * 1024))
    seen.push(state(socket))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as { port: number }
  const client = connect(port, '127.0.0.1')
  const first = once(client, 'readable')
  client.write('POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n')
  await until(() => owing !== undefined)
  client.write('{}')
  await first
  await until(() => seen.length === 4)
  t.strictSame(seen, [
    [false, false, false, false],
    [false, true, false, false],
    [true, true, false, false],
    [true, true, true, false]
  ])
  client.resume()
  await until(() => !owing?._httpMessage)

  let asked = 0
  const closeIdle = server.closeIdleConnections.bind(server)
  server.closeIdleConnections = () => {
    asked++
    closeIdle()
  }
  server.close()
  t.equal(asked, 1, '`close` calls the method of the object, which src/processes/idle-connections.ts replaces')
  client.destroy()
})

t.test('minio', async (t) => {
  type Sent = { method: string; path: string; headers: Record<string, string> }
  const sent: Sent[] = []
  const xml: Record<string, string> = {
    'POST uploads': '<InitiateMultipartUploadResult><UploadId>an/id</UploadId></InitiateMultipartUploadResult>',
    'POST uploadId':
      '<CompleteMultipartUploadResult><Location>x</Location><Bucket>bucket</Bucket><Key>key</Key><ETag>x</ETag></CompleteMultipartUploadResult>',
    'GET list-type': '<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>'
  }
  const server = http.createServer((request, reply) => {
    request.resume()
    const query = new URL(request.url ?? '', 'http://a').searchParams
    const known = ['uploads', 'uploadId', 'list-type'].find((name) => query.has(name))
    const status = request.method === 'DELETE' ? 204 : request.url?.includes('busy') ? 503 : 200
    reply.writeHead(status, { etag: '"x"' }).end(xml[`${request.method} ${known}`])
  })
  let connections = 0
  server.on('connection', () => connections++)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const agent = new http.Agent({ keepAlive: true })
  t.teardown(() => {
    agent.destroy()
    server.close()
  })
  const request = ((options: Sent, callback: () => void) => {
    sent.push(options)
    return http.request(options, callback)
  }) as unknown as typeof http.request
  const { port } = server.address() as { port: number }
  const client = new Client({
    ...{ endPoint: '127.0.0.1', port, useSSL: false, region: 'us-east-1', accessKey: 'key', secretKey: 'secret' },
    ...{ transportAgent: agent, transport: { request }, retryOptions: { disableRetry: true } }
  })

  t.test('has methods for single requests of an upload in parts, and sends them through our transport', async (t) => {
    t.equal(await client.initiateNewMultipartUpload('bucket', 'key', {}), 'an/id')
    const part = { bucketName: 'bucket', objectName: 'key', uploadID: 'an/id', partNumber: 2, headers: {} }
    t.match(await client.uploadPart(part, Buffer.from('content')), { etag: 'x', part: 2 })
    await client.completeMultipartUpload('bucket', 'key', 'an/id', [{ part: 2, etag: 'x' }])
    await client.abortMultipartUpload('bucket', 'key', 'an/id')
    t.match(await client.listObjectsV2Query('bucket', '', '', '', 10, 'after'), { objects: [], isTruncated: false })
    await client.copyObject('bucket', 'to', '/bucket/from').catch(() => {})
    t.strictSame(
      sent.map(({ method, path }) => `${method} ${path}`),
      [
        'POST /bucket/key?uploads',
        // as it is given: src/files/store/s3.ts escapes it
        'PUT /bucket/key?uploadId=an/id&partNumber=2',
        'POST /bucket/key?uploadId=an%2Fid',
        'DELETE /bucket/key?uploadId=an/id',
        'GET /bucket?delimiter=&encoding-type=url&list-type=2&max-keys=10&prefix=&start-after=after',
        'PUT /bucket/to'
      ]
    )
    t.equal(sent.at(-1)?.headers['x-amz-copy-source'], '/bucket/from')
  })
  t.test('signs nothing of an upload by a client but its host, so aws4fetch signs it', async (t) => {
    const url = new URL(await client.presignedPutObject('bucket', 'key', 300))
    t.equal(url.searchParams.get('X-Amz-SignedHeaders'), 'host')
  })
  t.test('leaves a reply of 503 unread, and its connection taken, so our transport reads it', async (t) => {
    const before = connections
    for (let times = 0; times < 5; times++) await t.rejects(client.getObject('bucket', 'busy'))
    // the first may use the connection of an earlier request
    t.ok(connections - before >= 4, `${connections - before} connections`)
  })
  t.test('sends nothing of a stream before it has the whole part, so the product makes its own parts', async (t) => {
    const size = 8 * 1024 * 1024
    const before = sent.length
    let sentEarly = 0
    async function* content() {
      for (let given = 0; given < size; given += 1024 * 1024) yield Buffer.alloc(1024 * 1024)
      for (let turns = 0; turns < 100; turns++) await new Promise(setImmediate)
      sentEarly = sent.length - before
    }
    await client.putObject('bucket', 'stream', Readable.from(content(), { objectMode: false }), size)
    t.equal(sentEarly, 0)
    t.equal(sent.length - before, 1)
  })
  t.test(
    'waits for a silent store, even when the agent has a timeout, so our transport ends the request',
    async (t) => {
      const silent = await startServer(t, { login: false })
      const timed = new http.Agent({ keepAlive: true, timeout: 20 })
      t.teardown(() => timed.destroy())
      const asking = new Client({
        ...{ endPoint: '127.0.0.1', port: Number(new URL(silent.connectionString).port), useSSL: false },
        ...{ region: 'us-east-1', accessKey: 'key', secretKey: 'secret', transportAgent: timed }
      })
      let settled = false
      const answer = asking.statObject('bucket', 'key').catch((err) => {
        settled = true
        return err
      })
      await sleep(300)
      t.notOk(settled)
      silent.close()
      t.ok((await answer) instanceof Error)
    }
  )
})

t.test('private parts are used in these files only', async (t) => {
  const uses = (pattern: RegExp) =>
    ['src', 'plugins', 'routes', 'db'].flatMap((folder) =>
      readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
        .map((name) => `${folder}/${name}`)
        .filter((path) => path.endsWith('.ts') && pattern.test(readFileSync(join(root, path), 'utf8')))
    )
  t.strictSame(uses(/from 'pg\/|from 'pg-protocol|\bconnection: PgConnection \}/), ['db/gate/pg-internals.ts'])
  t.strictSame(uses(/_httpMessage/).sort(), ['src/processes/idle-connections.ts'])
  t.strictSame(uses(/from 'minio'/), ['src/files/store/s3.ts'])
  t.strictSame(uses(/process\.binding|reallyExit|getOwnPropertySymbols|require\('node:internal/), [])
})

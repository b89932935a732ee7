import { createHash } from 'node:crypto'
import { type AddressInfo, connect } from 'node:net'
import t, { type Test } from 'tap'
import { createRateMeter } from '../src/files/minimum-rate.ts'
import { render } from '../src/metrics.ts'
import { boundary, fileForm } from './forms.ts'
import { allRows, createTenant, eventually, post, startApp, type Tenant } from './harness.ts'

// bounded in time: how long one waits for a place

/*
 * Upload slots are counted by person, whatever number of agencies they have. A request that waits for a slot is refused in time, and a
 * slow upload gives its slot to a waiting one.
 */

type Slow = { reply: Promise<string>; isDone(): boolean }

/** Sends a request with so many bytes a second, until it is answered. */
function slowly(t: Test, port: number, head: string[], opening: string, bytesPerSecond: number): Slow {
  const socket = connect(port, '127.0.0.1')
  let text = ''
  socket.on('error', () => {})
  socket.on('data', (chunk) => {
    text += chunk
  })
  socket.write([...head, '', ''].join('\r\n') + opening)
  const trickle = setInterval(() => {
    if (text === '') socket.write('x'.repeat(bytesPerSecond / 5))
  }, 200)
  const reply = new Promise<string>((done) => socket.once('close', () => done(text)))
  reply.then(() => clearInterval(trickle))
  t.teardown(() => socket.destroy())
  return { reply, isDone: () => text !== '' }
}

const headOf = (host: string, token: string | undefined, request: string, type: string, more: string[] = []) => [
  `${request} HTTP/1.1`,
  `Host: ${host}`,
  ...(token === undefined ? [] : [`Authorization: Bearer ${token}`]),
  `Content-Type: ${type}`,
  'Content-Length: 1000000',
  ...more
]
const asForm = `multipart/form-data; boundary=${boundary}`
const part = (filename: string) =>
  `--${boundary}\r\nContent-Disposition: form-data; name="file"; filename="${filename}"\r\nContent-Type: text/plain\r\n\r\n`

/** Makes agencies of one person. Resolves to a host and a token of each. */
async function agenciesOf(owner: Tenant, slugs: string[]): Promise<{ host: string; token: string }[]> {
  const agencies = [{ host: owner.host, token: owner.owner.tokens.access_token }]
  for (const slug of slugs) {
    const created = await owner.send(post('/tenants', { name: `The ${slug} agency`, slug }))
    if (created.statusCode !== 201) throw new Error(created.body)
    const { access_token } = (await owner.send(post('/auth/switch', { tenant: slug }))).json()
    agencies.push({ host: `${slug}.localhost`, token: access_token })
  }
  return agencies
}

t.test('places for uploads', async (t) => {
  const app = await startApp(t)
  const [eve, mallory, rival] = [
    await createTenant(app, 'eve'),
    await createTenant(app, 'mallory'),
    await createTenant(app, 'rival')
  ]
  await app.listen({ host: '127.0.0.1', port: 0 })
  const { port } = app.server.address() as AddressInfo
  const [here, there] = (await agenciesOf(eve, ['eve-two'])) as [
    { host: string; token: string },
    { host: string; token: string }
  ]
  async function placesOf(state: 'running' | 'waiting'): Promise<number> {
    const text = render([{ worker: '1', families: await app.metrics.collect() }])
    return Number(new RegExp(`^aggios_uploads_${state}\\{[^}]*\\} (\\d+)`, 'm').exec(text)?.[1])
  }
  const formsOf = (count: number, { host, token }: { host: string; token: string }, pace: number) =>
    Array.from({ length: count }, () =>
      slowly(t, port, headOf(host, token, 'POST /api/v1/files', asForm), part('slow.txt'), pace)
    )

  // the slowest upload gives its slot away first
  const sha256 = createHash('sha256').update('x'.repeat(1_000_000)).digest('hex')
  const announced = { name: 'slow.txt', content_type: 'text/plain', size: 1_000_000, sha256 }
  const { url } = (await eve.send(post('/files/uploads', announced))).json()
  const begun = await eve.send({
    method: 'POST',
    url: '/api/v1/files/resumable',
    headers: { 'tus-resumable': '1.0.0', 'upload-length': '1000000', 'upload-metadata': 'filename c2xvdy50eHQ=' }
  })
  const resumable = String(begun.headers.location)
  const tus = ['Tus-Resumable: 1.0.0', 'Upload-Offset: 0']
  const special: [string, Slow][] = [
    [
      'a resumable upload',
      slowly(
        t,
        port,
        headOf(here.host, here.token, `PATCH ${resumable}`, 'application/offset+octet-stream', tus),
        '',
        50
      )
    ],
    [
      'an image',
      slowly(t, port, headOf(here.host, here.token, 'PUT /api/v1/users/me/avatar', asForm), part('a.png'), 100)
    ],
    ['a form before its file', slowly(t, port, headOf(there.host, there.token, 'POST /api/v1/files', asForm), '', 150)],
    [
      'what a link takes',
      slowly(t, port, headOf(here.host, undefined, `PUT ${new URL(url).pathname}`, 'text/plain'), '', 200)
    ]
  ]
  await eventually(async () => (await placesOf('running')) === 4)
  const files = [...formsOf(8, here, 1125), ...formsOf(12, there, 1125)]

  t.test('are as many for a person with two agencies as for one', async (t) => {
    await eventually(async () => (await placesOf('waiting')) === 12)
    t.equal(await placesOf('running'), 12)
    t.equal((await rival.send(fileForm('hello'))).statusCode, 201, 'others have theirs')
  })
  t.test('are waited for, and whoever gets none is told so before they give up', async (t) => {
    await eventually(() => files.filter((one) => one.isDone()).length === 12, 30_000)
    const replies = await Promise.all(files.filter((one) => one.isDone()).map(({ reply }) => reply))
    for (const reply of replies) {
      t.match(reply, /^HTTP\/1\.1 503 /)
      t.match(reply, /\r\nretry-after: [1-9]\d*\r\n/i)
      t.match(reply, /\r\nconnection: close\r\n/i)
      t.match(reply, /"code":"overloaded"/)
    }
    t.equal(special.filter(([, one]) => one.isDone()).length, 0, 'nobody makes room for themselves')
    t.equal(await placesOf('running'), 12)
  })
  t.test('are given up by who comes slowly, to whoever waits', async (t) => {
    const mallorys = { host: mallory.host, token: mallory.owner.tokens.access_token }
    const more = formsOf(12, mallorys, 1500)
    await eventually(async () => (await placesOf('running')) === 24)
    for (const [what, slow] of special) {
      const rivals = { host: rival.host, token: rival.owner.tokens.access_token }
      formsOf(1, rivals, 2000)
      const reply = await slow.reply
      t.match(reply, /^HTTP\/1\.1 503 [\s\S]*\r\nretry-after: [1-9]/i, what)
      t.match(reply, /"code":"overloaded"/, what)
    }
    t.equal((await rival.send(fileForm('hello'))).statusCode, 201)
    const ended = [...files, ...more].filter((one) => one.isDone()).length
    t.equal(ended, 12 + 1, 'one for each who waited')
  })
  t.test('leave nothing behind but what a resumable upload has', async (t) => {
    const head = await eve.send({ method: 'HEAD', url: resumable, headers: { 'tus-resumable': '1.0.0' } })
    t.ok(Number(head.headers['upload-offset']) >= 50, `${head.headers['upload-offset']} bytes are kept`)
    t.equal((await eve.send('/api/v1/users/me')).json().avatar_url, null)
    t.equal((await eve.send('/api/v1/files')).json().data.length, 0)
    // of the forms: 7 of eve's in their file, and 12 and 4 of others
    const arriving = async () =>
      (await allRows(app.database, "select from files where status = 'arriving' and name = 'slow.txt'")).length
    await t.resolves(eventually(async () => (await arriving()) <= 7 + 12 + 4 + 2, 10_000))
  })
})

t.test('who sends a byte now and then is not waited for', async (t) => {
  /** Samples of each second: the bytes received, and whether the server was waiting for them. */
  function paceOf(seconds: [bytes: number, awaited: boolean][]) {
    const arrival = { bytes: 0, awaited: true }
    const start = performance.now()
    const pace = createRateMeter(() => ({ ...arrival }), { bytes_per_second: 1000, grace_ms: 10_000 })
    for (const [i, [bytes, awaited]] of seconds.entries()) {
      arrival.bytes += bytes
      arrival.awaited = awaited
      pace.sample(start + (i + 1) * 1000)
    }
    return pace
  }
  const of = (count: number, bytes: number, awaited = true) => Array<[number, boolean]>(count).fill([bytes, awaited])
  t.equal(paceOf(of(9, 1)).isBelowMinimum(), false, 'not yet')
  t.equal(paceOf(of(12, 1)).isBelowMinimum(), true)
  t.equal(paceOf(of(100, 1001)).isBelowMinimum(), false, 'slow, and fast enough')
  t.equal(paceOf(of(100, 0, false)).isBelowMinimum(), false, 'nobody is blamed for what waits elsewhere')
  t.equal(paceOf([...of(1, 1_000_000), ...of(100, 0)]).isBelowMinimum(), false, 'on average')

  const kib = 1024
  t.equal(paceOf(of(3, 1)).rateBelowPreemption(), undefined, 'not yet')
  t.ok((paceOf(of(6, kib)).rateBelowPreemption() ?? Number.NaN) < 2 * kib)
  t.equal(paceOf(of(6, 65 * kib)).rateBelowPreemption(), undefined, 'fast enough')
  t.equal(paceOf([...of(9, 10_000 * kib), ...of(5, kib)]).rateBelowPreemption() === undefined, false, 'of late')
  t.equal(paceOf([...of(9, kib), ...of(5, 100 * kib)]).rateBelowPreemption(), undefined, 'of late')
  t.equal(paceOf(of(100, 0, false)).rateBelowPreemption(), undefined, 'nobody is blamed for what waits elsewhere')
})

import t from 'tap'
import { boundary, form } from './forms.ts'
import { createTenant, password, post, send, startApp } from './harness.ts'

/*
 * Text that is not valid is refused, and never replaced. Otherwise several passwords would be equal, and the stored text would not
 * be the text that was sent.
 */

t.test('what is no UTF-8', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const json = { 'content-type': 'application/json' }
  const login = (payload: Buffer | string, headers = json) =>
    send(app, acme.host, { method: 'POST', url: '/api/v1/auth/login', payload, headers })
  const body = (secret: Buffer | string) =>
    Buffer.concat([
      Buffer.from(`{"email":"${acme.owner.email}","password":"`),
      Buffer.from(secret as string),
      Buffer.from('"}')
    ])

  t.test('is refused in a body, for which no replacement stands', async (t) => {
    for (const bytes of ['ff', 'c3', 'c328', 'eda080', 'f8888080', 'c080', 'f4908080']) {
      t.match((await login(body(Buffer.from(bytes, 'hex')))).json(), { status: 400, code: 'malformed_json' }, bytes)
    }
    t.equal((await login(body(Buffer.from(password)))).statusCode, 200)
    t.equal((await login(Buffer.concat([Buffer.from('efbbbf', 'hex'), body(password)]))).statusCode, 200, 'with a mark')
    t.match((await login(body('\ufffd'.repeat(12)))).json(), { code: 'invalid_credentials' }, 'a real replacement')
  })

  t.test(
    'is refused where half of a surrogate pair is escaped, at any depth, and names have no control characters',
    async (t) => {
      const settings = (text: string) =>
        acme.send({ method: 'PATCH', url: '/api/v1/tenant', payload: text, headers: json })
      for (const half of ['\\ud800', '\\uDFFF', 'a\\udbffb', '\\udc00\\ud800']) {
        t.match((await login(body(half))).json(), { status: 400, code: 'malformed_json' }, half)
        t.match((await settings(`{"name":"${half}"}`)).json(), { status: 400, code: 'malformed_json' })
        t.match((await settings(`{"settings":{"${half}":[["x"]]}}`)).json(), { status: 400, code: 'malformed_json' })
      }
      for (const control of ['\\u0000', '\\n', '\\u007f', '\\u0080', '\\u009f']) {
        const refusal = (await settings(`{"name":"a${control}b"}`)).json()
        t.match(refusal, { status: 400, code: 'validation_failed', errors: [{ path: '/body/name' }] }, control)
        t.equal(refusal.errors.length, 1)
      }
      t.equal((await settings('{"name":"\\ud83d\\ude00"}')).json().name, '\u{1f600}')
      t.equal((await settings('{"name":"\\\\ud800"}')).json().name, '\\ud800', 'a backslash is a character')
    }
  )

  t.test('is not read in another charset', async (t) => {
    for (const charset of ['latin1', 'utf-16', '"iso-8859-1"', 'x']) {
      const headers = { 'content-type': `application/json; charset=${charset}` }
      t.match((await login(body(password), headers)).json(), { status: 415, code: 'unsupported_media_type' }, charset)
    }
    for (const charset of ['utf-8', 'UTF8', '"utf-8"']) {
      const headers = { 'content-type': `application/json; charset=${charset}` }
      t.equal((await login(body(password), headers)).statusCode, 200, charset)
    }
  })

  t.test('is refused in the name of a file, in metadata and in a URL', async (t) => {
    const upload = (name: Buffer) => {
      const parts = [
        Buffer.from(`--${boundary}\r\nContent-Disposition: form-data; name="file"; filename="`),
        name,
        Buffer.from(`"\r\nContent-Type: text/plain\r\n\r\nhello\r\n--${boundary}--\r\n`)
      ]
      return acme.send({ method: 'POST', url: '/api/v1/files', ...form([]), payload: Buffer.concat(parts) })
    }
    t.equal((await upload(Buffer.from('fc.txt'))).statusCode, 201)
    t.match((await upload(Buffer.from('fc2e747874', 'hex'))).json(), { status: 400, code: 'malformed_request' })
    const metadata = (value: string) =>
      acme.send({
        method: 'POST',
        url: '/api/v1/files/resumable',
        headers: { 'tus-resumable': '1.0.0', 'upload-length': '5', 'upload-metadata': `filename ${value}` }
      })
    t.equal((await metadata(Buffer.from('é.txt').toString('base64'))).statusCode, 201)
    for (const value of [Buffer.from('fc2e747874', 'hex').toString('base64'), 'a*b', 'YQ=a']) {
      t.match((await metadata(value)).json(), { status: 400, code: 'validation_failed' }, value)
    }
    for (const url of ['/api/v1/files?q=%ff', '/api/v1/files?q=%c3', '/api/v1/files?q=%e0%a4%a', '/api/v1/files/%ff']) {
      t.match((await acme.send(url)).json(), { status: 400, code: 'malformed_request' }, url)
    }
    t.equal((await acme.send('/api/v1/files?q=%c3%a9')).statusCode, 200)
    t.equal((await acme.send('/api/v1/files')).json().data.length, 1, 'nothing else was stored')
  })
})

t.test('links name the host that was asked, and http or https', async (t) => {
  const app = await startApp(t, { TRUST_PROXY: '127.0.0.0/8' })
  const acme = await createTenant(app, 'acme')
  const created = await acme.send({
    method: 'POST',
    url: '/api/v1/files',
    ...form([{ name: 'file', filename: 'a.txt', type: 'text/plain', content: 'hello' }])
  })
  const { id } = created.json()
  const link = async (headers: Record<string, string>): Promise<string> => {
    const reply = await acme.send({ url: `/api/v1/files/${id}/url`, headers })
    return new URL(reply.json().url).origin
  }
  t.equal(await link({}), 'http://acme.localhost')
  t.equal(await link({ 'x-forwarded-proto': 'https' }), 'https://acme.localhost')
  for (const proto of ['javascript', 'https,javascript', 'ftp', 'HTTPS://evil.example/', 'http']) {
    t.equal(await link({ 'x-forwarded-proto': proto }), 'http://acme.localhost', proto)
  }
  const evil = { 'x-forwarded-host': 'evil.example', forwarded: 'host=evil.example', 'x-original-host': 'evil.example' }
  t.equal(await link(evil), 'http://acme.localhost')
  const direct = await acme.send({
    ...post('/files/uploads', { name: 'b.txt', size: 5, content_type: 'text/plain', sha256: 'a'.repeat(64) }),
    headers: { ...evil, 'x-forwarded-proto': 'javascript' }
  })
  t.equal(new URL(direct.json().url).origin, 'http://acme.localhost', direct.body)
})

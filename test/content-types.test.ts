import t from 'tap'
import { mediaTypePattern } from '../src/http/media-types.ts'
import { usageOf } from './file-requests.ts'
import { createFile } from './forms.ts'
import { allRows, createTenant, post, startApp } from './harness.ts'
import { startScriptedS3 } from './scripted-s3.ts'

const announced = { name: 'a', content_type: 'text/plain', size: 7, sha256: '0'.repeat(64) }
const bad = [
  ...[
    'a\r\nb',
    'text/plain\r\nx: y',
    'text/plain\u0000',
    'text',
    '/',
    'text/',
    '/plain',
    'a/b/c',
    'a b/c',
    'text/plain;'
  ],
  ...[
    'text/plain; charset',
    'text/plain; =x',
    'text/plain; a="b',
    'text/plain; a="\u0001"',
    'tëxt/plain',
    'text/plain, a/b'
  ],
  ...[' text/plain', 'text/plain ', `a/${'b'.repeat(126)}`]
]
const good = [
  'a/b',
  'application/vnd.api+json',
  'text/plain;charset=utf-8',
  'text/plain ; a=b;c="d \\" e"',
  "x-!#$%&'*+.^_`|~/9"
]

t.test('the grammar of a media type', async (t) => {
  const pattern = new RegExp(mediaTypePattern, 'u')
  for (const type of good) {
    t.match(type, pattern)
    t.equal(new Headers({ 'content-type': type }).get('content-type'), type)
  }
  for (const type of bad.slice(0, -1)) t.notMatch(type, pattern)
})

for (const kind of ['disk', 'S3'] as const) {
  t.test(`what a client calls the type of an upload, with ${kind}`, async (t) => {
    const s3 = kind === 'S3' ? await startScriptedS3(t) : undefined
    const env = s3 ? { ...s3.environment, S3_PUBLIC_ENDPOINT: s3.settings.endpoint } : {}
    const app = await startApp(t, env)
    const acme = await createTenant(app, 'acme')
    const rows = () => allRows(app.database, 'select id from files')
    const room = () => usageOf(acme)
    const resumable = (type: string) =>
      acme.send({
        method: 'POST',
        url: '/api/v1/files/resumable',
        headers: {
          'upload-length': '7',
          'upload-metadata': `filename ${btoa('a')},filetype ${Buffer.from(type).toString('base64')}`
        }
      })

    t.test('is refused where it can not stand in a header, and takes no room', async (t) => {
      for (const type of bad) {
        const direct = await acme.send(post('/files/uploads', { ...announced, content_type: type }))
        t.match(direct.json(), { status: 400, code: 'validation_failed' }, JSON.stringify(type))
        t.match((await resumable(type)).json(), { status: 400, code: 'validation_failed' }, JSON.stringify(type))
      }
      t.strictSame(await rows(), [])
      t.equal(await room(), 0)
    })
    t.test('of a form is what it can be', async (t) => {
      for (const type of ['text/plain; a="b', 'tëxt/plain', 'x', 'a/b/c']) {
        const { content_type } = await createFile(acme, 'text', 'a', type)
        t.match(content_type, /^(text\/plain|application\/octet-stream)$/)
      }
      await allRows(app.database, 'delete from files')
      await allRows(app.database, 'update storage_usage set bytes = 0')
    })
    t.test('is taken otherwise', async (t) => {
      for (const type of good) {
        t.equal((await acme.send(post('/files/uploads', { ...announced, content_type: type }))).statusCode, 201, type)
        t.equal((await resumable(type)).statusCode, 201, type)
      }
      t.equal((await resumable('')).statusCode, 201, 'of who knows none')
      await allRows(app.database, 'delete from files')
      await allRows(app.database, 'update storage_usage set bytes = 0')
    })
    t.test('nor does anything take room that fails after it was reserved', async (t) => {
      const direct = Object.getOwnPropertyDescriptor(app.objects, 'direct') as PropertyDescriptor
      const failing = async () => {
        throw new TypeError('it can not be signed')
      }
      Object.defineProperty(app.objects, 'direct', { value: { put: failing, get: failing }, configurable: true })
      t.equal((await acme.send(post('/files/uploads', announced))).statusCode, 500)
      Object.defineProperty(app.objects, 'direct', direct)
      await allRows(app.database, 'revoke insert on uploads from aggios_app')
      t.equal((await acme.send(post('/files/uploads', announced))).statusCode, 500)
      t.equal((await resumable('a/b')).statusCode, 500)
      await allRows(app.database, 'grant insert (id, sha256, store_id) on uploads to aggios_app')
      const { put } = app.objects
      app.objects.put = failing
      const empty = { method: 'POST', url: '/api/v1/files/resumable', headers: { 'upload-length': '0' } } as const
      t.equal((await acme.send(empty)).statusCode, 500)
      app.objects.put = put
      t.strictSame(await rows(), [])
      t.equal(await room(), 0)
    })
  })
}

t.test('a body', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const json = 'application/json'
  const patches = `${json}, application/merge-patch+json`
  const id = '00000000-0000-4000-8000-000000000000'
  const routes: [method: 'POST' | 'PUT' | 'PATCH' | 'DELETE', path: string, accept: string][] = [
    ['POST', '/auth/login', json],
    ['POST', '/auth/logout', json],
    ['POST', '/tenants', json],
    ['DELETE', '/tenant', json],
    ['PATCH', '/tenant', patches],
    ['PATCH', '/users/me', patches],
    ['PATCH', `/members/${id}`, patches],
    ['POST', '/files', 'multipart/form-data'],
    ['POST', '/files/uploads', json],
    ['PUT', '/users/me/avatar', 'multipart/form-data'],
    ['PUT', '/tenant/logo', 'multipart/form-data'],
    ['PATCH', `/files/resumable/${id}/content`, 'application/offset+octet-stream']
  ]
  const refused = (
    method: 'POST' | 'PUT' | 'PATCH' | 'DELETE',
    path: string,
    headers: Record<string, string>,
    payload = 'x'
  ) => acme.send({ method, url: `/api/v1${path}`, headers, payload })

  t.test('of another type is refused by what is taken, in words and in headers', async (t) => {
    for (const [method, path, accept] of routes) {
      const types = ['text/plain', 'application/x-www-form-urlencoded', 'application/xml', 'nothing', '']
      if (!accept.includes(json)) types.push(json)
      if (accept !== 'multipart/form-data') types.push('multipart/form-data; boundary=x')
      if (method !== 'PATCH') types.push('application/merge-patch+json')
      for (const type of types) {
        const reply = await refused(method, path, { 'content-type': type })
        const what = `${method} ${path} of "${type}"`
        t.match(reply.json(), { status: 415, code: 'unsupported_media_type' }, what)
        for (const each of accept.split(', ')) t.match(reply.json().detail, each, what)
        t.equal(reply.headers.accept, accept, what)
        t.equal(reply.headers['accept-post'], method === 'POST' ? accept : undefined, what)
        t.equal(reply.headers['accept-patch'], method === 'PATCH' ? accept : undefined, what)
      }
    }
  })
  t.test('is refused where nothing is to be sent', async (t) => {
    const reply = await refused('DELETE', '/users/me/avatar', { 'content-type': 'text/plain' })
    t.match(reply.json(), { status: 415, detail: 'this operation takes no body' })
  })
  t.test('that is encoded is refused, whatever by', async (t) => {
    for (const [method, path, accept] of [...routes, ['PUT', '/files/links/x/content', '*/*'] as const]) {
      const type = accept.split(', ')[0]?.replace('*/*', 'text/plain') as string
      for (const coding of ['gzip', 'br', 'aws-chunked', 'gzip, identity', 'nothing']) {
        const headers = { 'content-type': type, 'content-encoding': coding }
        const reply = await refused(method, path, headers, '{"x":1}')
        t.match(
          reply.json(),
          { status: 415, code: 'unsupported_media_type', detail: /Content-Encoding/ },
          `${path} ${coding}`
        )
        t.equal(reply.headers['accept-encoding'], 'identity', `${path} ${coding}`)
      }
      const plain = await refused(method, path, { 'content-type': type, 'content-encoding': 'Identity' }, '{"x":1}')
      t.not(plain.statusCode, 415, path)
    }
  })
  t.test('is a merge patch where that is taken', async (t) => {
    const types = [json, 'application/merge-patch+json', 'Application/Merge-Patch+JSON; charset=utf-8']
    for (const [index, type] of types.entries()) {
      const headers = { 'content-type': type }
      const name = `Ada ${index}`
      for (const path of ['/users/me', '/tenant']) {
        const reply = await refused('PATCH', path, headers, JSON.stringify({ name }))
        t.equal(reply.statusCode, 200, `${path} ${type}`)
        t.equal(reply.json().name, name, `${path} ${type}`)
      }
      const half = await refused('PATCH', '/users/me', headers, '{')
      t.match(half.json(), { status: 400, code: 'malformed_json' }, type)
    }
    const { paths } = app.swagger() as { paths: Record<string, Record<string, { requestBody?: { content: object } }>> }
    const documented = Object.entries(paths).flatMap(([path, { patch }]) =>
      patch?.requestBody ? [[path, Object.keys(patch.requestBody.content).join(', ')]] : []
    )
    t.ok(documented.length >= 4)
    for (const [path = '', types] of documented) {
      t.equal(types, path.includes('/resumable/') ? 'application/offset+octet-stream' : patches, path)
    }
  })
})

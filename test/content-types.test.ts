import t from 'tap'
import { mediaTypePattern } from '../src/media-types.ts'
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
    const room = async () => (await acme.send('/api/v1/tenant')).json().usage.storage_bytes
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
      const { direct } = app.objects
      const failing = async () => {
        throw new TypeError('it can not be signed')
      }
      Object.assign(app.objects, { direct: { put: failing, get: failing } })
      t.equal((await acme.send(post('/files/uploads', announced))).statusCode, 500)
      Object.assign(app.objects, { direct })
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

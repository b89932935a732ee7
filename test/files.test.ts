import t from 'tap'
import { createTenant, send, startApp } from './harness.ts'

/** A form as clients send it. */
export function form(parts: { name: string; filename?: string; type?: string; content: Buffer | string }[]) {
  const boundary = 'boundaryOfTheTests'
  const chunks = parts.flatMap(({ name, filename, type, content }) => [
    Buffer.from(
      `--${boundary}\r\nContent-Disposition: form-data; name="${name}"${filename === undefined ? '' : `; filename="${filename}"`}\r\n${type === undefined ? '' : `Content-Type: ${type}\r\n`}\r\n`
    ),
    Buffer.from(content),
    Buffer.from('\r\n')
  ])
  return {
    payload: Buffer.concat([...chunks, Buffer.from(`--${boundary}--\r\n`)]),
    headers: { 'content-type': `multipart/form-data; boundary=${boundary}` }
  }
}

t.test('a file goes in and comes out', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const content = Buffer.from('%PDF-1.7\nhello hello')
  const reply = await acme.send({
    method: 'POST',
    url: '/api/v1/files',
    ...form([
      { name: 'file', filename: 'a.pdf', type: 'application/pdf', content },
      { name: 'purpose', content: 'contract' }
    ])
  })
  t.equal(reply.statusCode, 201, reply.body)
  const file = reply.json()
  t.match(file, { name: 'a.pdf', purpose: 'contract', size: content.length, content_type: 'application/pdf' })
  const got = await acme.send(`/api/v1/files/${file.id}/content`)
  t.equal(got.statusCode, 200, got.body)
  t.same(got.rawPayload, content)
  t.match(got.headers, { 'content-disposition': /attachment; filename="a.pdf"/ })
  t.equal((await rival.send(`/api/v1/files/${file.id}/content`)).statusCode, 404)
  t.match((await acme.send('/api/v1/tenant')).json().usage, { storage_bytes: content.length })
  const link = (await acme.send(`/api/v1/files/${file.id}/url`)).json()
  const linked = await send(app, 'acme.localhost', new URL(link.url).pathname)
  t.same(linked.rawPayload, content)
  t.match((await send(app, 'rival.localhost', new URL(link.url).pathname)).json(), { code: 'tenant_mismatch' })
  t.equal((await acme.send({ method: 'DELETE', url: `/api/v1/files/${file.id}?permanent=true` })).statusCode, 204)
  await app.objectSweep.run()
  t.match((await acme.send('/api/v1/tenant')).json().usage, { storage_bytes: 0 })
})

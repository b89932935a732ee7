import { readdirSync, readFileSync, statSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { parse } from 'yaml'
import { createDiskStore } from '../src/files/store/disk.ts'
import { form } from './forms.ts'
import { createTenant, root, send, startApp } from './harness.ts'

/* What is kept where others of the machine, or of the browser, could read it. */

t.test('nobody but the server reads the folders of the disk store', async (t) => {
  const folder = join(t.testdir(), 'files')
  // as a version before made it
  await mkdir(folder, { mode: 0o755 })
  const store = createDiskStore(folder)
  await store.check()
  const app = await startApp(t, { DATA_DIR: t.testdirName })
  const acme = await createTenant(app, 'acme')
  const one = form([{ name: 'file', filename: 'a.txt', content: 'hello' }])
  t.equal((await acme.send({ method: 'POST', url: '/api/v1/files', ...one })).statusCode, 201)
  const folders = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isDirectory())
  t.ok(folders.length >= 2)
  for (const path of [folder, ...folders.map(({ parentPath, name }) => join(parentPath, name))]) {
    t.equal((statSync(path).mode & 0o777).toString(8), '700', path)
  }
})

t.test('the docs page keeps no token beyond the tab', async (t) => {
  const app = await startApp(t)
  const script = await send(app, 'localhost', '/api/v1/docs/static/swagger-initializer.js')
  t.equal(script.statusCode, 200)
  t.match(script.body, '"persistAuthorization":false')
})

t.test('the log of the proxy has no paths, in which tokens of links are', (t) => {
  const { accessLog } = parse(readFileSync(join(root, 'traefik.yml'), 'utf8'), { merge: true })
  t.match(accessLog.fields, {
    names: { RequestPath: 'drop', RequestLine: 'drop' },
    headers: { defaultMode: 'drop' }
  })
  t.end()
})

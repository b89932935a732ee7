import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { promisify } from 'node:util'
import t from 'tap'
import { createTestDatabase, root, startServer, testEnvironment } from './harness.ts'
import { findProgram } from './parts.ts'

const readme = readFileSync(`${root}/README.md`, 'utf8')

t.test('the README is short', async (t) => {
  t.ok(readme.split('\n').length <= 150)
})

t.test('the walk in the README works when it is pasted', { skip: findProgram('curl').skip }, async (t) => {
  const database = await createTestDatabase(t)
  const server = await startServer(t, testEnvironment(database))
  const walk = [...readme.matchAll(/```bash\n(.*?)```/gs)]
    .map(([, code]) => code)
    .find((code) => code?.includes('API='))
  if (!walk) throw new Error('there is no walk')
  // one line for each reply, because curl prints no line end
  const script = walk
    .replace('http://localhost:8080', `http://localhost:${server.port}`)
    .replaceAll('curl -s ', 'curl -sw "\\n" ')
  const { stdout, stderr } = await promisify(execFile)('bash', ['--norc', '-euc', script])
  t.equal(stderr, '')
  const replies = stdout
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line))
  t.match(replies, [
    { status: 'ok' },
    { token_type: 'Bearer', user: { role: 'owner' }, tenant: { slug: 'acme' } },
    { email: 'ada@acme.example', role: 'owner' },
    { slug: 'acme', status: 'active' },
    { status: 401, code: 'session_revoked' }
  ])
  t.equal(replies.length, 5)
})

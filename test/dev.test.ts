import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { appendFileSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { createTestDatabase, elsewhere, eventually, password, root, testEnvironment } from './harness.ts'
import { freePort } from './ports.ts'
import { copySources } from './source-copy.ts'

t.test('npm run dev', async (t) => {
  const folder = copySources(t)
  const port = await freePort()
  const env = testEnvironment(await createTestDatabase(t), { LOG_LEVEL: 'info', PORT: String(port) })
  const child = spawn(process.execPath, [join(folder, 'test', 'dev.ts')], {
    cwd: elsewhere,
    env: { PATH: process.env.PATH, HOME: process.env.HOME, ...env } as NodeJS.ProcessEnv,
    stdio: ['ignore', 'pipe', 'pipe']
  })
  const exited = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGTERM')
    await exited
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (chunk: string) => {
      output += chunk
    })
  }
  const starts = () => output.match(/^\[\d\d:\d\d:\d\d\.\d{3}\] INFO: Server listening at /gm)?.length ?? 0
  const api = `http://127.0.0.1:${port}/api/v1`
  const call = async (path: string, body: unknown, headers = {}) => {
    const options = { method: 'POST', body: JSON.stringify(body) }
    const reply = await fetch(api + path, { ...options, headers: { 'content-type': 'application/json', ...headers } })
    return { status: reply.status, body: (await reply.json()) as { access_token: string; user: { email: string } } }
  }

  await t.test('starts the server, and prints its log as text', async (t) => {
    await eventually(() => starts() === 1, 60_000)
    await eventually(() => output.includes('Aggios API is ready.'))
    t.notMatch(output, /^\{"level"/m)
  })

  await t.test('prints a mail as its recipient reads it, with a link that accepts the invitation', async (t) => {
    const { body } = await call('/auth/register', {
      ...{ tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada', email: 'ada@acme.example', password }
    })
    const invitation = { email: 'ana@example.com', role: 'member' }
    const invited = await call('/invitations', invitation, { authorization: `Bearer ${body.access_token}` })
    t.equal(invited.status, 201)
    await eventually(() => /invitations\/accept\?token=\S+\s/.test(output))
    t.match(output, /^ *To: ana@example\.com\n *Subject: Ada invites you to Acme\n *\n *Hello,\n/m)
    const [link = ''] = /http:\S+\/invitations\/accept\?token=\S+/.exec(output) ?? []
    const page = await fetch(link)
    t.match(await page.text(), /<form method="post">/)
    const accepted = await fetch(link, { method: 'POST', body: new URLSearchParams({ name: 'Ana', password }) })
    t.equal(accepted.status, 200)
    t.match(await accepted.json(), { access_token: String })
    const again = await fetch(link, { method: 'POST', body: new URLSearchParams({ name: 'Ana', password }) })
    t.match(await again.json(), { code: 'invitation_expired' }, 'a refusal is shown')
  })

  await t.test('prints links that confirm an address and set a new password', async (t) => {
    await eventually(() => /\/email\/verify\?token=\S+\s/.test(output))
    const [verification = ''] = /http:\S+\/email\/verify\?token=\S+/.exec(output) ?? []
    t.match(await (await fetch(verification)).text(), /<form method="post">\s+<p><button>/)
    const confirm = () => fetch(verification, { method: 'POST', body: new URLSearchParams() })
    t.match(await (await confirm()).text(), /Done/)
    t.match(await (await confirm()).json(), { code: 'link_expired' })
    t.equal((await call('/auth/password/forgot', { email: 'ada@acme.example' })).status, 202)
    await eventually(() => /\/password\/reset\?token=\S+\s/.test(output))
    const [forgotten = ''] = /http:\S+\/password\/reset\?token=\S+/.exec(output) ?? []
    t.match(await (await fetch(forgotten)).text(), /name="password"/)
    const word = new URLSearchParams({ password: 'an entirely different one' })
    t.match(await (await fetch(forgotten, { method: 'POST', body: word })).text(), /Done/)
  })

  await t.test('restarts the server when a source changes', async (t) => {
    appendFileSync(join(folder, 'src', 'text.ts'), '\n// changed\n')
    await eventually(() => starts() === 2, 60_000)
    t.equal((await fetch(`${api}/health/live`)).status, 200)
  })

  await t.test('ends with the server', async (t) => {
    child.kill('SIGINT')
    t.strictSame(await exited, [0, null])
    await t.rejects(fetch(`${api}/health/live`))
  })
})

t.test('the script runs this file', async (t) => {
  const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  t.match(manifest.scripts.dev, /test\/dev\.ts$/)
})

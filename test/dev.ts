import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { readEnvironment } from '../src/config/env-file.ts'

/*
 * `npm run dev`: runs the server, restarts it at each change of a source, and prints its log as text. A mail is printed
 * as its recipient would read it. Unless APP_URL names a front end, its link leads to a page of this process with a form
 * that does what the link is for.
 */

const root = join(import.meta.dirname, '..')
const watched = ['src', 'plugins', 'routes', 'db', 'package.json'].map((name) => join(root, name))

const password = '<p><label>Password: <input name="password" type="password"></label>'

/** The forms that links in mails lead to, by path. Each sends its fields and the token to an operation of the API. */
const forms: Record<string, { title: string; fields: string; operation: string }> = {
  '/invitations/accept': {
    title: 'Accept the invitation',
    fields: `<p><label>Your name, if you have no account: <input name="name"></label>\n  ${password}`,
    operation: '/invitations/accept'
  },
  '/password/reset': { title: 'Set a new password', fields: password, operation: '/auth/password/reset' },
  '/email/verify': { title: 'Confirm the address', fields: '', operation: '/auth/email/verify' }
}

const pageOf = ({ title, fields }: { title: string; fields: string }) => `<!doctype html>
<meta charset="utf-8">
<title>${title}</title>
<form method="post">
  ${fields}
  <p><button>${title}</button>
</form>
`

const settings = readSettings()
if (settings.LOG_FORMAT === undefined) process.env.LOG_FORMAT = 'pretty'
if (settings.APP_URL === undefined) process.env.APP_URL = await serveForms(settings.PORT ?? '8080')

const paths = [...watched, ...['.env'].filter((name) => existsSync(name))].map((path) => `--watch-path=${path}`)
const server = spawn(
  process.execPath,
  [...paths, '--watch-preserve-output', join(root, 'src', 'server.ts'), ...process.argv.slice(2)],
  { stdio: 'inherit' }
)
// Ctrl-C in a terminal reaches the server by itself; a `kill` of this process is passed on
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => server.kill(signal))
const [code] = await once(server, 'close')
process.exit(code ?? 1)

/** An `.env` that can't be read is reported by the server itself. */
function readSettings(): NodeJS.ProcessEnv {
  try {
    return readEnvironment()
  } catch {
    return process.env
  }
}

/** Serves the forms in place of a front end. Resolves to the origin of the pages. */
async function serveForms(apiPort: string): Promise<string> {
  const page = createServer(async (request, reply) => {
    const { pathname, searchParams } = new URL(request.url ?? '/', 'http://localhost')
    const form = forms[pathname]
    if (!form) return void reply.writeHead(404).end(`There are only ${Object.keys(forms).join(', ')}\n`)
    const html = 'text/html; charset=utf-8'
    if (request.method !== 'POST') return void reply.setHeader('content-type', html).end(pageOf(form))
    const given = Object.fromEntries([...new URLSearchParams(await text(request))].filter(([, value]) => value !== ''))
    const answer = await fetch(`http://localhost:${apiPort}/api/v1${form.operation}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...given, token: searchParams.get('token') })
    }).catch(() => undefined)
    if (answer?.status === 204) return void reply.setHeader('content-type', html).end('<p>Done.\n')
    reply
      .writeHead(answer?.status ?? 502, { 'content-type': 'application/json' })
      .end((await answer?.text()) ?? '{"detail":"the server does not answer"}')
  })
  page.listen(0, '127.0.0.1')
  await once(page, 'listening')
  return `http://localhost:${(page.address() as AddressInfo).port}`
}

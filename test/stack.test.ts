import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, rmSync } from 'node:fs'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { eventually, root } from './harness.ts'
import { findProgram } from './parts.ts'
import { accepts, freePort } from './ports.ts'

// rehearsal: the stack of npm run stack

/*
 * `npm run stack`: the commands that it prints work, and nothing is left when it ends.
 */

const traefik = findProgram('traefik')
const openssl = findProgram('openssl')
const curl = findProgram('curl')

async function startStack(t: Test) {
  const args = ['test/stack.ts', '--processes', '2', '--port', String(await freePort())]
  const child = spawn(process.execPath, [...process.execArgv, ...args], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'pipe']
  })
  let text = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk
    })
  }
  const exited = once(child, 'exit')
  t.teardown(async () => {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGTERM')
    await exited
  })
  await eventually(() => {
    if (child.exitCode !== null) throw new Error(`the stack ended:\n${text}`)
    return text.includes('Ctrl-C')
  }, 60_000)
  const ports = [...text.matchAll(/:(\d{4,5})\b(?!:127)/g)].map(([, port]) => Number(port))
  return { child, exited, text, dir: /data and logs +(\/\S+)/.exec(text)?.[1] ?? '', ports: [...new Set(ports)] }
}

t.test('the stack', { skip: traefik.skip || openssl.skip || curl.skip }, async (t) => {
  t.test('answers to the commands that it prints, and goes without a trace', async (t) => {
    const stack = await startStack(t)
    const commands = stack.text.slice(stack.text.indexOf('  call='), stack.text.indexOf('  $call https://acme.'))
    const script = commands.replaceAll('$call ', '$call -s -w "\\n" ')
    const { stdout } = await promisify(execFile)('bash', ['-euc', script])
    const replies = stdout.split('\n').filter(Boolean)
    t.match(JSON.parse(replies[0] ?? ''), { status: 'ok' })
    t.match(JSON.parse(replies[1] ?? ''), { token_type: 'Bearer', tenant: { slug: 'acme' } })
    t.equal(replies.length, 2)
    t.ok(stack.ports.length >= 4, 'two processes and two entries')
    for (const port of stack.ports) t.ok(await accepts(port), `${port} is open`)

    stack.child.kill('SIGTERM')
    t.strictSame(await stack.exited, [0, null])
    for (const port of stack.ports) t.notOk(await accepts(port), `${port} is closed`)
    t.notOk(existsSync(stack.dir))
  })

  t.test('takes all of its parts along when it is killed', { skip: findProgram('setpriv').skip }, async (t) => {
    const stack = await startStack(t)
    t.teardown(() => rmSync(stack.dir, { recursive: true, force: true }))
    stack.child.kill('SIGKILL')
    await stack.exited
    await eventually(async () => (await Promise.all(stack.ports.map(accepts))).every((open) => !open), 10_000)
    await eventually(() => !existsSync(`${stack.dir}/data/postgres/postmaster.pid`), 10_000)
    t.pass('in good order')
  })
})

import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { crc32, deflateSync } from 'node:zlib'
import sharp from 'sharp'
import t, { type Test } from 'tap'
import { Problem } from '../src/http/problems.ts'
import { readPsUsage } from '../src/subprocesses/process-usage.ts'
import { createSandbox, JobRefused, type Limits } from '../src/subprocesses/sandbox.ts'
import { form } from './forms.ts'
import { createTestDatabase, eventually, password, type Server, startServer, testEnvironment } from './harness.ts'

// bounded in time: how long one who decodes may take
// rehearsal: subprocesses that exceed their limits

/*
 * The subprocesses that decode uploaded files. A file that exceeds a limit ends the subprocess, and the server continues.
 */

if (!existsSync('/proc/self/stat')) {
  t.plan(0, 'processes are looked at in /proc, and there is none here')
  process.exit()
}

const MiB = 2 ** 20
const commandOf = (pid: number) => readFileSync(`/proc/${pid}/cmdline`, 'latin1').replaceAll('\0', ' ')

function isAlive(pid: number): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
  } catch {
    return false
  }
}

/** The decoding subprocesses of one kind that belong to a process. */
function decodersOf(pid: number | undefined, kind: string): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').map(Number)
  return children.filter(
    (child) => child > 0 && isAlive(child) && commandOf(child).includes(`decoder-process.ts ${kind}`)
  )
}

/** A subprocess whose jobs misbehave as a decoder could on malicious bytes. */
const program = `
  import { serveJobs } from ${JSON.stringify(import.meta.resolve('../src/subprocesses/job-loop.ts'))}
  const kept = []
  serveJobs(async (job) => {
    if (job === 'loop') for (;;);
    if (job === 'wait') await new Promise(() => {})
    if (job === 'abort') process.abort()
    if (job === 'exit') process.exit(1)
    if (job === 'throw') throw new Error('as it may')
    if (job === 'memory') for (;;) { kept.push(Buffer.alloc(8 * 1024 * 1024, 1)); await new Promise((r) => setTimeout(r, 5)) }
    if (job === 'leap') { kept.push(Buffer.alloc(8 * 1024 * 1024 * 1024, 1)) }
    if (job === 'environment') return Object.keys(process.env)
    return process.pid
  }, 0)`

const limits: Limits = { memory: 256 * MiB, cpuMs: 1000, wallMs: 20_000, jobs: 100 }

function startSandbox(t: Test, changed: Partial<Limits> = {}, depth = 10) {
  const path = join(t.testdir(), 'program.mjs')
  writeFileSync(path, program)
  const warnings: object[] = []
  const log = { warn: (details: object) => void warnings.push(details) }
  const sandbox = createSandbox<string, unknown>({
    program: path,
    args: [],
    limits: { ...limits, ...changed },
    depth,
    log
  })
  t.teardown(sandbox.close)
  return { sandbox, warnings }
}

const refusalOf = (job: Promise<unknown>) =>
  job.then(
    () => 'none',
    (err) => (err instanceof JobRefused ? err.limit : err instanceof Problem ? err.kind.code : String(err))
  )

t.test(
  'a job that passes a limit or breaks its process is refused, and the next one finds another process',
  async (t) => {
    const { sandbox, warnings } = startSandbox(t)
    let before = await sandbox.run('pid')
    t.equal(await sandbox.run('pid'), before, 'one process does many jobs')
    for (const [job, limit, deaths] of [
      ['loop', /s of CPU/, 1],
      ['memory', /256 MiB/, 1],
      ['abort', /broke the process/, 2]
    ] as const) {
      const warned = warnings.length
      t.match(await refusalOf(sandbox.run(job)), limit, job)
      t.equal(warnings.length, warned + deaths, 'each death is said')
      await eventually(() => !isAlive(before as number))
      const after = await sandbox.run('pid')
      t.not(after, before)
      before = after
    }
    t.match(
      await refusalOf(sandbox.run('leap')),
      /MiB|broke|memory|allocation/i,
      'the kernel refuses what no look could see in time'
    )
    t.match(await refusalOf(sandbox.run('throw')), /as it may/, 'a failure is no reason to end the process')
  }
)

t.test('a process that is ended from outside costs nobody an answer, unless it happens twice', async (t) => {
  const { sandbox } = startSandbox(t)
  const pid = (await sandbox.run('pid')) as number
  process.kill(pid, 'SIGSTOP')
  const waiting = sandbox.run('pid')
  process.kill(pid, 'SIGKILL')
  t.not(await waiting, pid)
  t.equal(await refusalOf(sandbox.run('exit')), 'overloaded')
  t.type(await sandbox.run('pid'), 'number')
})

t.test('it knows no secret, waits for nobody and is replaced after its number of jobs', async (t) => {
  const { sandbox } = startSandbox(t, { jobs: 3 })
  const names = (await sandbox.run('environment')) as string[]
  t.strictSame(
    names.filter((name) => !/^(NODE_CHANNEL|_TAPJS|NODE_OPTIONS$|PWD$|SHLVL$|_$|OLDPWD$)/.test(name)),
    []
  )
  const pids: unknown[] = []
  for (let i = 0; i < 5; i++) pids.push(await sandbox.run('pid'))
  t.strictSame([pids[0] === pids[1], pids[1] === pids[2], pids[2] === pids[4]], [true, false, true])
  await eventually(() => !isAlive(pids[0] as number))
})

t.test('as many jobs wait as may, and no more', async (t) => {
  const { sandbox } = startSandbox(t, {}, 2)
  const jobs = [sandbox.run('loop', 'a'), sandbox.run('pid', 'a'), sandbox.run('pid', 'a'), sandbox.run('pid', 'a')]
  t.strictSame(
    (await Promise.all(jobs.map(refusalOf))).map((said) => said.replace(/^more.*/, 'refused')),
    ['refused', 'none', 'none', 'overloaded']
  )
})

t.test('closed, it ends what is under way and starts nothing more', async (t) => {
  const { sandbox, warnings } = startSandbox(t)
  const pid = (await sandbox.run('pid')) as number
  const waiting = refusalOf(sandbox.run('wait'))
  sandbox.close()
  t.equal(await waiting, 'overloaded')
  t.equal(await refusalOf(sandbox.run('pid')), 'overloaded')
  await eventually(() => !isAlive(pid))
  t.strictSame(warnings, [])
})

t.test('where there is no /proc, ps says what a process uses', async (t) => {
  const usage = await readPsUsage(process.pid)
  if (usage === undefined) return t.pass('there is no ps here')
  t.ok(usage.memory > 20 * MiB && usage.memory < 4096 * MiB)
  t.ok(Math.abs(usage.cpuMs - (process.cpuUsage().user + process.cpuUsage().system) / 1000) < 3000)
})

/** A grey PNG of any size. `rows` is the number of bytes of its pixels, which may differ from what its header states. */
function pngOf(width: number, height: number, rows = (width + 1) * height): Buffer {
  const chunk = (type: string, data: Buffer) => {
    const body = Buffer.concat([Buffer.from(type), data])
    const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)]
    length.writeUInt32BE(data.length)
    sum.writeUInt32BE(crc32(body))
    return Buffer.concat([length, body, sum])
  }
  const header = Buffer.alloc(13)
  header.writeUInt32BE(width, 0)
  header.writeUInt32BE(height, 4)
  header.set([8, 0, 0, 0, 0], 8)
  return Buffer.concat([
    Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'),
    chunk('IHDR', header),
    chunk('IDAT', deflateSync(Buffer.alloc(rows), { level: 1 })),
    chunk('IEND', Buffer.alloc(0))
  ])
}

/** A GIF with so many frames of one pixel. */
function gifOf(frames: number): Buffer {
  const screen = Buffer.from('474946383961010001008000000000 00ffffff'.replaceAll(' ', ''), 'hex')
  const frame = Buffer.from('21f90400010000002c000000000100010000024401 00'.replaceAll(' ', ''), 'hex')
  return Buffer.concat([screen, ...Array<Buffer>(frames).fill(frame), Buffer.from(';')])
}

/** An SVG that takes minutes to render: each level uses the one below ten times, with a filter. */
function slowSvg(): string {
  const levels = Array.from(
    { length: 9 },
    (_, i) => `<g id="l${i + 1}" filter="url(#f)">${`<use href="#l${i}"/>`.repeat(10)}</g>`
  )
  const filter = '<filter id="f"><feGaussianBlur stdDeviation="90"/></filter>'
  return `<svg xmlns="http://www.w3.org/2000/svg" width="5000" height="5000"><defs>${filter}<path id="l0" d="M0 0h5000v5000z"/>${levels.join('')}</defs><use href="#l9"/></svg>`
}

t.test('a server', async (t) => {
  const urls = await createTestDatabase(t)
  const server = await startServer(t, testEnvironment(urls, { LOG_LEVEL: 'warn', SHUTDOWN_TIMEOUT: '2' }))
  const owner = { tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada', email: 'ada@acme.example', password }
  const json = { 'content-type': 'application/json' }
  const registered = await server.fetch('/api/v1/auth/register', {
    method: 'POST',
    headers: json,
    body: JSON.stringify(owner)
  })
  const { access_token } = (await registered.json()) as { access_token: string }
  const authorization = `Bearer ${access_token}`
  async function sendTo({ fetch }: Server, method: string, path: string, content: Buffer | string, filename: string) {
    const { payload, headers } = form([{ name: 'file', filename, type: 'image/png', content }])
    const reply = await fetch(`/api/v1${path}`, {
      method,
      headers: { ...headers, authorization },
      body: payload as never
    })
    return [reply.status, ((await reply.json()) as { code?: string }).code] as const
  }
  const setAvatar = (content: Buffer | string, filename = 'face.png') =>
    sendTo(server, 'PUT', '/users/me/avatar', content, filename)
  const mostMemory = () =>
    Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${server.child.pid}/status`, 'utf8'))?.[1]) / 1024

  t.test('shows what is no image to no decoder', async (t) => {
    const samples = [
      slowSvg(),
      `<?xml version="1.0"?>${slowSvg()}`,
      '%PDF-1.7\n',
      'II*\0',
      `\0${slowSvg()}`,
      'GIF88a',
      ''
    ]
    for (const content of samples) t.strictSame(await setAvatar(content), [415, 'unsupported_media_type'])
    t.strictSame(decodersOf(server.child.pid, 'images'), [], 'none was even started')
  })

  t.test('stays small whatever it is sent', async (t) => {
    const wide = pngOf(12_500_000, 4)
    t.ok(wide.length < 300_000)
    const samples: [what: string, statuses: number[], content: Buffer][] = [
      ['a side of 12,500,000 pixels', [400], wide],
      ['a side of 12,500,000 pixels, upright', [400], pngOf(4, 12_500_000, 20)],
      ['a header that promises more than follows', [415], pngOf(6000, 6000, 1000)],
      ['a header that promises less than follows', [200, 415], pngOf(10, 10, 50_000_000)],
      [
        'an image with a renderer behind its first bytes',
        [415],
        Buffer.concat([pngOf(9, 9).subarray(0, 8), Buffer.from(slowSvg())])
      ],
      ['100,000 frames', [200, 400, 415], gifOf(100_000)]
    ]
    for (const [what, statuses, content] of samples) {
      const [status, code] = await setAvatar(content)
      t.ok(statuses.includes(status), `${what}: ${status} ${code}`)
    }
    const small = await sharp({ create: { width: 9, height: 9, channels: 3, background: 'red' } })
      .png()
      .toBuffer()
    t.strictSame(await setAvatar(small), [200, undefined], 'and a good one passes afterwards')
    t.ok(mostMemory() < 600, `${mostMemory().toFixed()} MiB at most`)
  })

  t.test('refuses what takes a decoder too much memory, and takes the next', async (t) => {
    // 39 megapixels, of which a decoder of this format keeps several copies
    const hungry = await sharp({ create: { width: 6240, height: 6240, channels: 3, background: 'red' } })
      .avif({ effort: 0 })
      .toBuffer()
    t.strictSame(await setAvatar(hungry, 'a.avif'), [400, 'validation_failed'])
    t.strictSame(await setAvatar(pngOf(9, 9)), [200, undefined])
    t.ok(mostMemory() < 600, `${mostMemory().toFixed()} MiB at most`)
  })

  t.test('finds the types of files in another process, which no image holds up', async (t) => {
    const [images] = decodersOf(server.child.pid, 'images')
    process.kill(images as number, 'SIGSTOP')
    const waiting = setAvatar(pngOf(9, 9))
    t.strictSame(await sendTo(server, 'POST', '/files', pngOf(9, 9), 'a.png'), [201, undefined])
    process.kill(images as number, 'SIGCONT')
    t.strictSame(await waiting, [200, undefined])
    const [types] = decodersOf(server.child.pid, 'types')
    process.kill(types as number, 'SIGKILL')
    t.strictSame(await sendTo(server, 'POST', '/files', pngOf(9, 9), 'a.png'), [201, undefined])
    t.match(readFileSync(`/proc/${decodersOf(server.child.pid, 'types')[0]}/oom_score_adj`, 'utf8'), /^1000/)
  })

  t.test('ends when it is told to, also while one is decoded for ever', async (t) => {
    const [images, types] = [decodersOf(server.child.pid, 'images')[0], decodersOf(server.child.pid, 'types')[0]]
    process.kill(images as number, 'SIGSTOP')
    const cut = setAvatar(pngOf(9, 9)).catch(() => 'cut')
    await sleep(300)
    server.child.kill('SIGTERM')
    const { code, signal } = await server.exited
    t.strictSame([code, signal], [0, null])
    await cut
    await eventually(() => ![images, types].some((pid) => isAlive(pid as number)))
  })

  t.test('leaves none behind when it is killed', async (t) => {
    const other = await startServer(t, testEnvironment(urls, { LOG_LEVEL: 'warn' }))
    t.equal((await sendTo(other, 'PUT', '/users/me/avatar', pngOf(9, 9), 'a.png'))[0], 200)
    const [pid] = decodersOf(other.child.pid, 'images')
    const limit = /^Max cpu time\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/limits`, 'utf8'))?.[1]
    t.equal(limit, '120', 'one that is at work for ever ends by this')
    other.child.kill('SIGKILL')
    await other.exited
    await eventually(() => !isAlive(pid as number))
  })
})

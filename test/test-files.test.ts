import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import t, { type Test } from 'tap'
import { testsTouchedBy } from './changed-files.ts'
import { readText, root } from './harness.ts'
import { findRehearsal, longest, runFile, runFiles } from './test-files.ts'

const tap = pathToFileURL(join(root, 'node_modules', 'tap', 'dist', 'esm', 'index.js')).href

/** Writes a file of tests, and runs it. */
async function outcomeOf(t: Test, source: string, timeoutSeconds = 20) {
  const file = join(t.testdir(), 'planted.test.ts')
  writeFileSync(file, `import t from '${tap}'\n${source}`)
  return runFile(file, { timeoutSeconds, show: false })
}

t.test('what a file of tests says is counted', async (t) => {
  const passing = await outcomeOf(
    t,
    `t.ok(true)
     t.test('nested', async (t) => { t.equal(1, 1); t.test('deeper', async (t) => { t.pass('once more') }) })
     t.test('without its part', { skip: 'there is no such part' }, () => {})`
  )
  t.match(passing, { passed: 3, failed: 0, skipped: 1, failures: [] })
  t.match(passing.skips.join(), /without its part # SKIP there is no such part/)

  const whole = await outcomeOf(t, "t.plan(0, 'no such machine')")
  t.match(whole, { passed: 0, failed: 0, skipped: 1 })
  t.match(whole.skips.join(), /no such machine/)
})

t.test('no failure gets lost', async (t) => {
  const failing = await outcomeOf(t, "t.test('nested', async (t) => { t.pass('one'); t.equal(1, 2, 'the sum') })")
  t.match(failing, { passed: 1, failed: 1 })
  t.match(failing.failures.join('\n'), /not ok 2 - the sum[\s\S]*lineNumber/)

  for (const [what, source] of Object.entries({
    'a throw before the first test': "throw new Error('planted')",
    'an exit in the middle': "t.test('one', async (t) => { t.pass('one'); process.exit(0) })",
    'a syntax error': "t.test('one', async (t) => {",
    'a signal': "t.test('one', async () => { process.kill(process.pid, 'SIGKILL'); await new Promise(() => {}) })",
    'a rejection nobody handles': "t.test('one', async (t) => { t.pass('one') })\nPromise.reject(new Error('planted'))"
  })) {
    const { failed, failures } = await outcomeOf(t, source)
    t.ok(failed > 0, what)
    t.not(failures.length, 0, what)
    if (/throw|syntax/.test(what)) t.match(failures.join('\n'), /planted/, `${what}: what Node says about it`)
  }
})

t.test('a file that does not end is ended by its time-out', async (t) => {
  const { failed, failures } = await outcomeOf(
    t,
    "t.test('never', async () => { setInterval(() => {}, 1000); await new Promise(() => {}) })",
    1
  )
  t.ok(failed > 0)
  t.match(failures.join('\n'), /timeout/)
})

t.test('files run beside each other, and each is told once', async (t) => {
  const files = ['one', 'two', 'three'].map((name) => join(t.testdir(), `${name}.test.ts`))
  for (const file of files) writeFileSync(file, `import t from '${tap}'\nt.ok(true)\n`)
  const told: string[] = []
  await runFiles(files, {
    jobs: 2,
    timeoutSeconds: 20,
    onDone: (file, { passed }) => void told.push(`${file} ${passed}`)
  })
  t.strictSame(told.sort(), files.map((file) => `${file} 1`).sort())
})

t.test('rehearsals say what they rehearse, and CI runs them', (t) => {
  t.equal(findRehearsal("import t from 'tap'\n\n// rehearsal: a restore\n\nt.pass()"), 'a restore')
  t.equal(findRehearsal("import t from 'tap'\n// no rehearsal: a restore"), undefined)
  t.match(findRehearsal(readText('test/drill.test.ts')), /restored/)
  t.equal(findRehearsal(readText('test/isolation.test.ts')), undefined, 'the proof of the isolation is none')
  t.match(readText('.ci/run'), /^exec npm test --silent -- --all$/m)
  t.end()
})

t.test('every file that starts first is there', (t) => {
  for (const name of longest) t.ok(existsSync(join(root, 'test', `${name}.test.ts`)), name)
  t.end()
})

t.test('a change touches the tests that could notice it', async (t) => {
  const touched = (path: string) => testsTouchedBy([path]).map((file) => /([\w-]+)\.test/.exec(file)?.[1] as string)
  t.ok(touched('src/limits/round-robin-queue.ts').includes('round-robin-queue'), 'an import')
  t.ok(touched('routes/audit-events/queries.ts').includes('audit-evidence'), 'an import of what is started')
  t.ok(touched('db/migrations/0005_files.ts').includes('catalogue'), 'what made the database')
  t.ok(touched('docs/faults.md').includes('docs'), 'a page that is read')
  t.ok(touched('compose.yaml').includes('compose'), 'a file that is read')
  t.notOk(touched('docs/faults.md').includes('auth'), 'and not the rest')
  t.strictSame(touched('test/round-robin-queue.test.ts').includes('round-robin-queue'), true, 'itself')
  t.strictSame(testsTouchedBy([]), [])
})

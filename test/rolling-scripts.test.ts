import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readlinkSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseEnv } from 'node:util'
import t, { type Test } from 'tap'
import { readMigrationConfig } from '../src/config/config.ts'
import { settings } from '../src/config/settings.ts'
import { readText, root, temporaryFolder } from './harness.ts'
import { findProgram } from './parts.ts'
import { createStage } from './stage-programs.ts'

/*
 * The scripts in deploy/ that replace one process after another. Docker and systemd are played by small programs that keep what
 * runs in a folder, and write down what they were asked for. And the units of systemd, judged by systemd itself.
 */

const analyze = findProgram('systemd-analyze', { compiled: true })

const docker = `
case "$*" in
  'compose ps --quiet backend') ls running ;;
  'compose --profile restore config --services')
    echo backend
    if [ -n "$BACKUPS" ]; then printf '%s\\n' backup backup-files restore restore-files restore-agency; fi ;;
  'compose build migrate backend'*) echo "build\${*#compose build migrate backend}" >> calls ;;
  'compose ps --quiet backup-files') test "$BACKUPS" = stopped || echo container ;;
  'compose up --detach --no-deps backup-files') echo 'replace backup-files' >> calls ;;
  'compose run --rm --no-deps migrate') echo migrate >> calls; test -z "$MIGRATION_FAILS" ;;
  'compose up --detach --no-deps --no-recreate --scale backend='*)
    wanted=$(echo "$*" | sed 's/.*backend=\\([0-9]*\\) backend/\\1/')
    while [ -z "$ENDS_AT_ONCE" ] && [ "$(ls running | wc -l)" -lt "$wanted" ]; do
      new=new$(grep -c '^add' calls)
      printf new > "running/$new"
      echo "add $new" >> calls
    done ;;
  'exec '*)
    if [ -n "$NEVER_READY" ] && [ "$(cat "running/$2")" = new ]; then exit 1; fi
    # the second question is answered
    if [ -e "asked-$2" ]; then echo "ready $2" >> calls; else : > "asked-$2"; exit 1; fi ;;
  'stop '*) echo "stop $2" >> calls ;;
  'rm '*) rm "running/$2" ;;
  'logs '*) echo "the log of the new one" ;;
  *) echo "docker $* is not known" >&2; exit 9 ;;
esac`

t.test('with compose, a replica is added before one ends', async (t) => {
  const script = 'deploy/compose/roll.sh'
  const start = (t: Test) => {
    const stage = createStage(t, { docker })
    for (const name of ['old1', 'old2']) stage.put(name, 'old')
    return stage
  }
  t.test('when the new version starts', async (t) => {
    const stage = start(t)
    t.match(await stage.run(script, [], {}), { code: 0, output: /2 replicas were replaced/ })
    t.strictSame(stage.running(), { new0: 'new', new1: 'new' })
    t.strictSame(stage.calls(), [
      ...['build', 'migrate'],
      ...['add new0', 'ready new0', 'stop old1', 'add new1', 'ready new1', 'stop old2']
    ])
  })
  t.test('when the new version does not become ready', async (t) => {
    const stage = start(t)
    const env = { NEVER_READY: '1', WAIT: '3' }
    t.match(await stage.run(script, [], env), { code: 1, output: /the log of the new one.*serve on/s })
    t.strictSame(stage.running(), { old1: 'old', old2: 'old' })
  })
  t.test('when the new version ends at once', async (t) => {
    const stage = start(t)
    t.match(await stage.run(script, [], { ENDS_AT_ONCE: '1' }), { code: 1, output: /ended at once.*serve on/ })
    t.strictSame(stage.running(), { old1: 'old', old2: 'old' })
  })
  t.test('with backups, what copies files is replaced too, and what restores is built', async (t) => {
    const stage = start(t)
    t.match(await stage.run(script, [], { BACKUPS: 'running' }), { code: 0 })
    const [build, ...others] = stage.calls()
    t.equal(build, 'build backup-files restore-files restore-agency')
    t.equal(others.at(-1), 'replace backup-files')
    const stopped = start(t)
    t.match(await stopped.run(script, [], { BACKUPS: 'stopped' }), { code: 0 })
    t.equal(stopped.calls().at(-1), 'stop old2', 'what was stopped stays so')
  })
  t.test('when the schema cannot be brought up to date', async (t) => {
    const stage = start(t)
    t.not((await stage.run(script, [], { MIGRATION_FAILS: '1' })).code, 0)
    t.strictSame(stage.running(), { old1: 'old', old2: 'old' })
    t.strictSame(stage.calls(), ['build', 'migrate'])
  })
  t.test('when nothing runs yet', async (t) => {
    const { run } = createStage(t, { docker })
    t.match(await run(script, [], {}), { code: 1, output: /docker compose up -d starts the first ones/ })
  })
})

const systemctl = `
case "$*" in
  'list-units --plain --no-legend --state=active,activating,reloading aggios@*.service')
    if [ -n "$NO_BUS" ]; then echo 'Failed to connect to bus' >&2; exit 1; fi
    for name in $(ls running); do echo "$name loaded active running Aggios API"; done ;;
  'start aggios-migrate@'*) echo "$2" >> calls; test -z "$MIGRATION_FAILS" ;;
  'restart '*) version=$(readlink current); printf %s "\${version#releases/}" > "running/$2"; echo "restart $2" >> calls ;;
  *) echo "systemctl $* is not known" >&2; exit 9 ;;
esac`
const curl = `
port=$(echo "$*" | sed 's/.*127.0.0.1:\\([0-9]*\\).*/\\1/')
test "$(cat "running/aggios@$port.service")" != "$BROKEN"`

t.test('with systemd, one process after another is started with the new version', async (t) => {
  const script = 'deploy/systemd/roll.sh'
  const start = (t: Test) => {
    const stage = createStage(t, { systemctl, curl, journalctl: 'echo "the log of the new one"' })
    for (const version of ['0.1.0', '0.2.0']) mkdirSync(join(stage.folder, 'releases', version), { recursive: true })
    symlinkSync('releases/0.1.0', join(stage.folder, 'current'))
    for (const port of [8081, 8082]) stage.put(`aggios@${port}.service`, '0.1.0')
    const roll = (version: string, env = {}) =>
      stage.run(script, [version], { AGGIOS_HOME: stage.folder, WAIT: '3', ...env })
    return { ...stage, roll, current: () => readlinkSync(join(stage.folder, 'current')) }
  }
  const both = (version: string) => ({ 'aggios@8081.service': version, 'aggios@8082.service': version })
  t.test('to a version, and back', async (t) => {
    const { roll, running, calls, current } = start(t)
    t.match(await roll('0.2.0'), { code: 0 })
    t.strictSame([running(), current()], [both('0.2.0'), 'releases/0.2.0'])
    t.strictSame(calls(), [
      'aggios-migrate@0.2.0.service',
      'restart aggios@8081.service',
      'restart aggios@8082.service'
    ])
    t.match(await roll('0.1.0'), { code: 0 })
    t.strictSame([running(), current()], [both('0.1.0'), 'releases/0.1.0'])
  })
  t.test('when the new version does not become ready', async (t) => {
    const { roll, running, calls, current } = start(t)
    const { code, output } = await roll('0.2.0', { BROKEN: '0.2.0' })
    t.match({ code, output }, { code: 1, output: /the log of the new one.*has the version before again/s })
    t.strictSame([running(), current()], [both('0.1.0'), 'releases/0.1.0'])
    const restarts = Array(2).fill('restart aggios@8081.service')
    t.strictSame(calls(), ['aggios-migrate@0.2.0.service', ...restarts], 'the others are left alone')
  })
  t.test('when the schema cannot be brought up to date, or there is no such version', async (t) => {
    const { roll, running, current } = start(t)
    t.not((await roll('0.2.0', { MIGRATION_FAILS: '1' })).code, 0)
    t.match(await roll('0.3.0'), { code: 1, output: /there is no .*0\.3\.0/ })
    t.strictSame([running(), current()], [both('0.1.0'), 'releases/0.1.0'])
  })
  t.test('when nothing runs, or systemd does not answer', async (t) => {
    const { roll, calls, current, folder } = start(t)
    t.match(await roll('0.2.0', { NO_BUS: '1' }), { code: 1, output: /Failed to connect to bus/ })
    rmSync(join(folder, 'running'), { recursive: true })
    mkdirSync(join(folder, 'running'))
    t.match(await roll('0.2.0'), { code: 1, output: /systemctl enable --now aggios@8081/ })
    t.strictSame([calls(), current()], [[''], 'releases/0.1.0'], 'nothing is migrated, and nothing switched')
  })
})

t.test('the units of systemd', async (t) => {
  const units = readdirSync(join(root, 'deploy/systemd')).filter((name) => name.endsWith('.service'))
  const textOf = (name: string) => readText(`deploy/systemd/${name}`)
  const environmentOf = (name: string) =>
    Object.fromEntries(
      [...textOf(name).matchAll(/^Environment=(.*)$/gm)].flatMap(([, line = '']) =>
        line.split(' ').map((pair) => pair.split('=', 2) as [string, string])
      )
    )

  t.test('give the product settings that it has, and each secret as a file', async (t) => {
    t.strictSame(units, ['aggios-migrate@.service', 'aggios@.service'])
    const known = new Map(Object.values(settings).map(({ name, secret }) => [name, secret]))
    for (const unit of units) {
      const credentials = [...textOf(unit).matchAll(/^LoadCredential=(\w+):\/etc\/aggios\/secrets\/\1$/gm)]
      const files = Object.entries(environmentOf(unit)).filter(([name]) => name.endsWith('_FILE'))
      t.strictSame(
        files.map(([name, path]) => [known.get(name.replace(/_FILE$/, '')), path]).sort(),
        credentials.map(([, name]) => [true, `%d/${name}`]).sort()
      )
      for (const [name] of Object.entries(environmentOf(unit)))
        t.ok(known.has(name.replace(/_FILE$/, '')), `${unit}: ${name}`)
    }
    t.notMatch(textOf('aggios@.service'), /owner/i, 'who serves has no credentials of the owner')
    const file = join(temporaryFolder(t), 'url')
    writeFileSync(file, 'postgres://aggios_owner:secret@db.example/aggios?sslmode=verify-full')
    const env = { ...environmentOf('aggios-migrate@.service'), DATABASE_OWNER_URL_FILE: file }
    t.match(readMigrationConfig(env), { databaseOwnerUrl: /verify-full/ })
  })

  t.test('decide what the file of settings must not change', async (t) => {
    const file = { ...parseEnv(readText('.env.example')), AUDIT_RETENTION: '90' }
    t.match(file, { NODE_ENV: 'development', PORT: '8080', TRUST_PROXY: '' })
    /** The environment of the program, where the file wins over Environment=, as systemd.exec(5) says. */
    const given = (unit: string) => {
      const text = textOf(unit).replaceAll('\\\n', '')
      t.match(text, /^EnvironmentFile=\/etc\/aggios\/aggios\.env$/m)
      const [program = '', ...words] = (/^ExecStart=(.*)$/m.exec(text)?.[1] ?? '').replaceAll('%i', '8081').split(/ +/)
      const [node = '', source = ''] = words.slice(-2)
      for (const path of [node.replace(/^\/opt\/aggios\/(current|releases\/8081)/, root), join(root, source)])
        t.ok(existsSync(path), path)
      const args = [...words.slice(0, -2), process.execPath, '-p', 'JSON.stringify(process.env)']
      const env = { ...environmentOf(unit), ...file } as unknown as NodeJS.ProcessEnv
      return JSON.parse(execFileSync(program, args, { env, encoding: 'utf8' }))
    }
    const serving = { NODE_ENV: 'production', HOST: '127.0.0.1', PORT: '8081', TRUST_PROXY: '127.0.0.1' }
    t.match(given('aggios@.service'), { ...serving, AUDIT_RETENTION: '' })
    const { DATABASE_OWNER_URL_FILE: _, ...migrating } = given('aggios-migrate@.service')
    const owner = 'postgres://aggios_owner:secret@db.example/aggios?sslmode=verify-full'
    const config = readMigrationConfig({ ...migrating, DATABASE_OWNER_URL: owner })
    t.match(config, { nodeEnv: 'production', auditRetention: 90 })
  })

  t.test('give a stop its time, and no second start to what a start cannot mend', async (t) => {
    const text = textOf('aggios@.service')
    t.ok(Number(/^TimeoutStopSec=(\d+)$/m.exec(text)?.[1]) > Number(settings.shutdownTimeout.fallback))
    t.match(text, /^RestartPreventExitStatus=78$/m)
  })

  t.test('are right, and closed, in the eyes of systemd', { skip: analyze.skip }, async (t) => {
    const folder = temporaryFolder(t)
    for (const unit of units) {
      const path = join(folder, unit)
      // systemd looks for the program too
      writeFileSync(path, textOf(unit).replaceAll(/\/opt\/aggios\/(current|releases\/%i)/g, root))
      const said = execFileSync(analyze.path, ['verify', path], { encoding: 'utf8', stdio: 'pipe' })
      t.equal(said, '')
      const security = execFileSync(analyze.path, ['security', '--offline=true', '--threshold=20', path])
      t.match(security.toString(), /Overall exposure level for .*: 1\.\d OK/)
    }
    const broken = join(folder, 'broken@.service')
    writeFileSync(broken, textOf('aggios@.service').replace('/usr/bin/env', '/nowhere'))
    t.throws(() => execFileSync(analyze.path, ['verify', broken], { stdio: 'pipe' }), 'it does look')
  })
})

import { execFileSync } from 'node:child_process'
import { chmodSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { secretFiles } from './compose-files.ts'
import { root } from './harness.ts'

/*
 * The scripts that make the secrets of the compose files, and replace them.
 */

t.test('a secret of the versions before is taken over, and one that is there stays', async (t) => {
  const folder = join(t.testdir(), 'secrets')
  const env = {
    PATH: process.env.PATH,
    SECRETS_DIR: folder,
    JWT_SECRET: 'taken-over',
    AGGIOS_OWNER_PASSWORD: 'owners'
  }
  const make = (more = {}) =>
    execFileSync(join(root, 'deploy/compose/secrets.sh'), { env: { ...env, ...more }, encoding: 'utf8' })
  t.match(make(), /made .*jwt_secret/)
  t.equal(readFileSync(join(folder, 'jwt_secret'), 'utf8'), 'taken-over\n')
  t.match(readFileSync(join(folder, 'database_owner_url'), 'utf8'), '//aggios_owner:owners@postgres')
  t.equal(statSync(folder).mode & 0o777, 0o700, 'nobody else gets into the folder')
  t.equal(make({ JWT_SECRET: 'another' }), '')
  t.equal(readFileSync(join(folder, 'jwt_secret'), 'utf8'), 'taken-over\n')
})

t.test('a rotation runs in a container that may write the files', async (t) => {
  const folder = t.testdir({ docker: '#!/bin/sh\nprintf "%s\\n" "$@"\n', secrets: {} })
  chmodSync(join(folder, 'docker'), 0o755)
  const env = { PATH: `${folder}:${process.env.PATH}`, SECRETS_DIR: join(folder, 'secrets') }
  const called = execFileSync(join(root, 'deploy/compose/rotate.sh'), ['jwt', '--finish', '--yes'], {
    env,
    encoding: 'utf8'
  })
  const words = called.trim().split('\n')
  t.strictSame(words.slice(-8), [
    ...['backend', 'node', 'src/cli/rotate.ts', 'jwt', '--finish', '--yes', '--listener', 'http://backend:9464']
  ])
  t.ok(words.includes(`${join(folder, 'secrets')}:/secrets`))
  const given = words.flatMap((word) => /^(\w+)_FILE=\/secrets\/(\w+)$/.exec(word)?.slice(1) ?? [])
  const files = given.filter((_, index) => index % 2 === 1)
  t.strictSame(
    files.map((name) => name.toUpperCase()),
    given.filter((_, index) => index % 2 === 0)
  )
  for (const name of files) t.ok(statSync(join(secretFiles, name)).isFile(), name)
  for (const setting of ['JWT_SECRET', 'DATABASE_URL', 'DATABASE_ADMIN_URL', 'REDIS_ADMIN_URL'])
    t.ok(given.includes(setting), setting)
})

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { readConfig } from '../src/config/config.ts'
import { settings } from '../src/config/settings.ts'
import { root } from './harness.ts'
import { strongSecret } from './tokens.ts'

/*
 * The file that operators copy: it names every setting, and changes none.
 */

t.test('.env.example', async (t) => {
  const lines = readFileSync(join(root, '.env.example'), 'utf8').split('\n')
  const entries = lines.flatMap((line) => {
    const match = /^(#\s*)?([A-Z][A-Z0-9_]*)=(.*)$/.exec(line)
    return match
      ? [{ name: match[2] as string, value: (match[3] as string).trim(), active: match[1] === undefined }]
      : []
  })
  const known = Object.values(settings)
  const find = (name: string) => entries.filter((entry) => entry.name === name)

  t.test('names every variable exactly once, and nothing that nobody reads', async (t) => {
    const names = entries.map(({ name }) => name)
    t.equal(new Set(names).size, names.length, 'no name twice')
    for (const { name } of known) t.equal(find(name).length, 1, name)
    const others = names.filter((name) => !known.some((one) => one.name === name))
    const compose = readdirSync(root)
      .filter((file) => /^compose.*\.yaml$/.test(file))
      .map((file) => readFileSync(join(root, file), 'utf8'))
      .join()
    t.strictSame(
      others.filter((name) => !new RegExp(`\\b${name}\\b`).test(compose)),
      [],
      'what the server does not read, compose.yaml does'
    )
  })
  t.test('shows the default of each that has one', async (t) => {
    for (const { name, fallback } of known) {
      if (fallback !== undefined) t.equal(find(name)[0]?.value, fallback, name)
    }
  })
  t.test('sets no secret', async (t) => {
    for (const { name, secret } of known) {
      if (!secret) continue
      const [entry] = find(name)
      t.ok(entry?.value === '' || entry?.active === false, name)
    }
  })
  t.test('is a valid configuration as it stands, the same as none', async (t) => {
    const active = Object.fromEntries(entries.filter((entry) => entry.active).map(({ name, value }) => [name, value]))
    t.strictSame(readConfig({ ...active, JWT_SECRET: strongSecret }), readConfig({ JWT_SECRET: strongSecret }))
  })
})

import { cpSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Owner, root } from './harness.ts'

const parts = [
  ...['src', 'plugins', 'routes', 'db', 'test', 'package.json', 'tsconfig.json'],
  // which tests read
  ...['docs', 'bench/scenarios', 'traefik.dynamic.yml']
]

/** Copies the sources into a folder that a test may change, and that is removed with it. Packages are those of the original. */
export function copySources(t: Owner): string {
  const folder = mkdtempSync(join(tmpdir(), 'aggios-copy-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 }))
  for (const part of parts) cpSync(join(root, part), join(folder, part), { recursive: true })
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'))
  return folder
}

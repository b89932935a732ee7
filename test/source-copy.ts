import { cpSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { type Owner, root, temporaryFolder } from './harness.ts'

const parts = [
  ...['src', 'plugins', 'routes', 'db', 'test', 'package.json', 'tsconfig.json'],
  // files that tests read
  ...['docs', 'bench/scenarios', 'traefik.dynamic.yml']
]

/**
 * Copies the sources into a folder that the test may change. It is removed at the end. node_modules is a link to the
 * original.
 */
export function copySources(t: Owner): string {
  const folder = temporaryFolder(t)
  for (const part of parts) cpSync(join(root, part), join(folder, part), { recursive: true })
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'))
  return folder
}

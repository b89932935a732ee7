import { readFileSync } from 'node:fs'
import { join } from 'node:path'

/*
 * `npm run licences`: the licence of each package that is shipped, as the lock file states it. Exits with 1 when one is not allowed.
 */

export type Package = { name: string; version: string; licence: string; shipped: boolean }

/** Licences that ask for a notice at most. */
const permissive = ['0BSD', 'Apache-2.0', 'BlueOak-1.0.0', 'BSD-2-Clause', 'BSD-3-Clause', 'ISC', 'MIT', 'MIT-0']
/** Used here, and shipped to nobody. */
const toolsOnly = ['CC-BY-3.0', 'CC0-1.0', 'Python-2.0', 'Unlicense', 'WTFPL']
/** A library of its own file, which anybody can replace, as its licence demands. */
const replaceable = /^@img\/sharp-/
/** Tools whose entry in the registry has no licence. Their files have: all are MIT. */
const unstated = ['combine-errors', 'jsonc-simple-parser', 'reserved']

export function readPackages(lockFile: string): Package[] {
  const { packages } = JSON.parse(readFileSync(lockFile, 'utf8')) as {
    packages: Record<string, { version: string; license?: string; dev?: boolean; link?: boolean }>
  }
  return Object.entries(packages)
    .filter(([path, { link }]) => path.startsWith('node_modules/') && !link)
    .map(([path, { version, license, dev }]) => ({
      name: path.slice(path.lastIndexOf('node_modules/') + 'node_modules/'.length),
      version,
      licence: license ?? '',
      shipped: !dev
    }))
}

/** Whether the policy allows a package: docs/supply-chain.md has it in words. */
export function isAllowed({ name, licence, shipped }: Package): boolean {
  if (licence === '') return !shipped && unstated.includes(name)
  const allowed = [...permissive, ...(shipped ? [] : toolsOnly)]
  if (replaceable.test(name)) allowed.push('LGPL-3.0-or-later')
  const alternatives = licence.replaceAll(/[()]/g, '').split(' OR ')
  return alternatives.some((each) => each.split(' AND ').every((one) => allowed.includes(one)))
}

if (import.meta.main) {
  const shipped = readPackages(join(import.meta.dirname, '..', 'package-lock.json')).filter((each) => each.shipped)
  const refused = shipped.filter((each) => !isAllowed(each))
  for (const { name, version, licence } of shipped)
    process.stdout.write(`${licence || 'unknown'}\t${name}@${version}\n`)
  for (const { name } of refused) process.stderr.write(`the licence of ${name} is not allowed\n`)
  process.exitCode = refused.length > 0 ? 1 : 0
}

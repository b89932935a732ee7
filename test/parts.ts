import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'

/*
 * Programs and data that some tests need and npm does not bring. `.ci/run` installs all of them.
 */

const cache = join(import.meta.dirname, '..', 'node_modules', '.cache')
const folder = join(cache, 'parts')

export type Part = {
  path: string
  /** For tap: false, or why the test is left out. */
  skip: false | string
}

/**
 * A program, from the folders of `.ci/run` or else from PATH. Where CI is "true" it must be there, unless it has to be compiled
 * first: what that takes is not on every machine.
 */
export function findProgram(name: string, { compiled = false } = {}): Part {
  return find(name, placesOf(name), constants.X_OK, { mayMiss: compiled })
}

function placesOf(program: string): string[] {
  const folders = [join(folder, 'bin'), join(cache, program), ...(process.env.PATH ?? '').split(delimiter)]
  return folders.map((each) => join(each, program))
}

/** The JSON schema of compose files, as check-jsonschema ships it. */
export function findComposeSchema(): Part {
  const path = join(folder, 'check_jsonschema', 'builtin_schemas', 'vendor', 'compose-spec.json')
  return find('the compose schema', [path], constants.R_OK)
}

/** The library that gives a process another clock, by LD_PRELOAD. */
export function findFakeClock(): Part {
  const folders = ['/usr/lib/x86_64-linux-gnu', '/usr/lib/aarch64-linux-gnu', '/usr/lib', '/usr/local/lib']
  return find(
    'libfaketime',
    folders.map((each) => join(each, 'faketime', 'libfaketime.so.1')),
    constants.R_OK
  )
}

/** A package of the bench, which has packages of its own. */
export function findBenchPackage(name: string): Part {
  const path = join(import.meta.dirname, '..', 'bench', 'node_modules', name, 'package.json')
  return find(`${name} of bench/`, [path], constants.R_OK)
}

function find(name: string, candidates: string[], mode: number, { mayMiss = false } = {}): Part {
  const path = candidates.find((candidate) => isAccessible(candidate, mode))
  if (path !== undefined) return { path, skip: false }
  const reason = `${name} is not on this machine; .ci/run installs it`
  if (process.env.CI === 'true' && !mayMiss) throw new Error(reason)
  return { path: '', skip: reason }
}

function isAccessible(path: string, mode: number): boolean {
  try {
    accessSync(path, mode)
    return true
  } catch {
    return false
  }
}
